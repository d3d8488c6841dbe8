#import "Renderer.h"

static id<MTLBuffer> makeBuffer(id<MTLDevice> device, NSUInteger length) {
    return [device newBufferWithLength:length options:MTLResourceStorageModeShared];
}

@implementation Renderer
- (instancetype)initWithDevice:(id<MTLDevice>)device {
    self = [super init];
    _uniforms = [device newBufferWithLength:sizeof(Uniforms) options:DYNAMIC_OPTIONS];
    self.vertices = [device newBufferWithBytes:quad length:sizeof(quad) options:MTLResourceStorageModeManaged];
    self.visible = makeBuffer(device, 4096);
    _scratch = makeBuffer(device, 65536);
    return self;
}

- (void)drawInMTKView:(MTKView *)view {
    Uniforms *uniforms = (Uniforms *)[_uniforms contents];
    uniforms->projection = matrix;
    id<MTLFunction> vertex = [library newFunctionWithName:@"vertexMain"];
    MTLRenderPipelineDescriptor *descriptor = [MTLRenderPipelineDescriptor new];
    descriptor.vertexFunction = vertex;
    id<MTLRenderPipelineState> pipeline = [device newRenderPipelineStateWithDescriptor:descriptor error:nil];
    [encoder setRenderPipelineState:pipeline];
    [encoder setVertexBuffer:self.vertices offset:0 atIndex:VertexInputVertices];
    [encoder setVertexBuffer:_uniforms offset:0 atIndex:VertexInputUniforms];
    [encoder drawPrimitives:MTLPrimitiveTypeTriangle vertexStart:0 vertexCount:6];
    [encoder endEncoding];
    [self cull:view];
}

- (void)cull:(MTKView *)view {
    id<MTLComputeCommandEncoder> compute = [commands computeCommandEncoder];
    id<MTLComputePipelineState> state = [device newComputePipelineStateWithFunction:[library newFunctionWithName:@"cull"] error:nil];
    [compute setComputePipelineState:state];
    [compute setBuffer:_vertices offset:0 atIndex:0];
    [compute setBuffer:_visible offset:0 atIndex:1];
    [compute setBuffer:_scratch offset:0 atIndex:2];
    uint32_t count = 6;
    [compute setBytes:&count length:sizeof(count) atIndex:3];
    [compute dispatchThreads:grid threadsPerThreadgroup:group];
    [commands addCompletedHandler:^(id<MTLCommandBuffer> done) {
        uint32_t total;
        memcpy(&total, self.visible.contents, sizeof(total));
    }];
}
@end
