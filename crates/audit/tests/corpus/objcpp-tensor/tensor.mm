// Objective-C++: templates, namespaces, lambdas and blocks around message sends.
#import <Metal/Metal.h>
#include <vector>
#include <functional>

namespace tensor {

static const char *source = R"(
kernel void fill(device float *out [[buffer(0)]], constant float &value [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) { out[i] = value; }
)";

template <typename T>
class Storage {
public:
    Storage(id<MTLDevice> device, size_t count) : count_(count) {
        buffer_ = [device newBufferWithLength:count * sizeof(T) options:MTLResourceStorageModeShared];
    }
    std::vector<T> host() const {
        std::vector<T> out(count_);
        memcpy(out.data(), [buffer_ contents], count_ * sizeof(T));
        return out;
    }
    void fill(id<MTLComputeCommandEncoder> encoder, float value) {
        id<MTLFunction> function = [library_ newFunctionWithName:@"fill"];
        id<MTLComputePipelineState> state = [device_ newComputePipelineStateWithFunction:function error:nil];
        auto bind = [&](int at) { [encoder setBuffer:buffer_ offset:0 atIndex:at]; };
        [encoder setComputePipelineState:state];
        [encoder setBuffer:buffer_ offset:0 atIndex:0];
        id<MTLBuffer> parameter = [device_ newBufferWithBytes:&value
                                                       length:sizeof(value)
                                                      options:MTLResourceStorageModeShared];
        [encoder setBuffer:parameter offset:0 atIndex:1];
        [encoder dispatchThreads:MTLSizeMake(count_, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
    }
private:
    id<MTLBuffer> buffer_;
    size_t count_;
};

}  // namespace tensor

#ifdef __cplusplus
extern "C" {
#endif
void reset(id<MTLBlitCommandEncoder> blit, id<MTLDevice> device) {
    @autoreleasepool {
        id<MTLBuffer> zeros = [device newBufferWithLength:256 options:MTLResourceStorageModeShared];
        [blit fillBuffer:zeros range:NSMakeRange(0, 256) value:0];
    }
}
#ifdef __cplusplus
}
#endif
