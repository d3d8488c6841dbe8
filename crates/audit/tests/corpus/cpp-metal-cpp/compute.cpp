// metal-cpp: overloads by arity, smart pointers, a managed buffer, a constructor's initialisers.
#include <Metal/Metal.hpp>

static const char *kSource = R"(
kernel void saxpy(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                  constant float &a [[buffer(2)]], uint i [[thread_position_in_grid]]) { y[i] += a * x[i]; }
)";

class Saxpy {
public:
    Saxpy(MTL::Device *device, size_t n)
        : m_device(device), m_x(device->newBuffer(n * sizeof(float), MTL::ResourceStorageModeManaged)) {
        m_y = NS::TransferPtr(device->newBuffer(n * sizeof(float), MTL::ResourceStorageModeShared));
        m_wrapped = device->newBuffer(pages, pageBytes, MTL::ResourceStorageModeShared, nullptr);
    }
    void upload(const float *values, size_t n);
    void run(MTL::ComputeCommandEncoder *encoder, float a);
    float first();

private:
    MTL::Device *m_device;
    MTL::Buffer *m_x;
    NS::SharedPtr<MTL::Buffer> m_y;
    MTL::Buffer *m_wrapped;
};

void Saxpy::upload(const float *values, size_t n) {
    float *to = static_cast<float *>(m_x->contents());
    for (size_t i = 0; i < n; i++) {
        to[i] = values[i];
    }
    m_x->didModifyRange(NS::Range::Make(0, n * sizeof(float)));
}

void Saxpy::run(MTL::ComputeCommandEncoder *encoder, float a) {
    auto *factor = m_device->newBuffer(&a, sizeof(float), MTL::ResourceStorageModeShared);
    auto *function = m_library->newFunction(NS::String::string("saxpy", NS::UTF8StringEncoding));
    auto *pipeline = m_device->newComputePipelineState(function, &error);
    encoder->setComputePipelineState(pipeline);
    encoder->setBuffer(m_x, 0, 0);
    encoder->setBuffer(m_y.get(), 0, 1);
    encoder->setBuffer(factor, 0, 2);
    encoder->dispatchThreads(grid, group);
}

float Saxpy::first() {
    auto *values = reinterpret_cast<float *>(m_y->contents());
    return values[0];
}
