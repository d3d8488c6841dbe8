import Metal

let frameOptions: MTLResourceOptions = [.storageModeManaged]

final class Engine {
    let device: MTLDevice
    var input: MTLBuffer!
    var output: MTLBuffer!
    var partial: MTLBuffer?
    lazy var table = device.makeBuffer(length: 1 << 16)!

    init(device: MTLDevice, count: Int) {
        self.device = device
        input = device.makeBuffer(length: count * MemoryLayout<Float>.stride, options: frameOptions)
        output = device.makeBuffer(length: count * MemoryLayout<Float>.stride, options: [])
        partial = device.makeBuffer(length: 4096, options: [.storageModePrivate, .hazardTrackingModeUntracked])
    }

    func write(_ values: [Float]) {
        values.withUnsafeBytes { bytes in
            input.contents().copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
        }
    }

    func encode(into encoder: MTLComputeCommandEncoder, library: MTLLibrary, scale: Float) throws {
        var scale = scale
        let function = library.makeFunction(name: "reduce")!
        let pipeline = try device.makeComputePipelineState(function: function)
        encoder.setComputePipelineState(pipeline)
        let buffers = [input, partial, output, table]
        for (index, buffer) in buffers.enumerated() {
            encoder.setBuffer(buffer, offset: 0, index: index)
        }
        guard let factor = device.makeBuffer(bytes: &scale, length: MemoryLayout<Float>.size, options: .storageModeShared) else { return }
        encoder.setBuffer(factor, offset: 0, index: 4)
        encoder.dispatchThreads(grid, threadsPerThreadgroup: group)
    }

    func result(count: Int) -> [Float] {
        let pointer = output.contents().bindMemory(to: Float.self, capacity: count)
        return Array(UnsafeBufferPointer(start: pointer, count: count))
    }
}
