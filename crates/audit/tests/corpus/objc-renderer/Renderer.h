#import <Metal/Metal.h>
#define DYNAMIC_OPTIONS (MTLResourceStorageModeShared | MTLResourceCPUCacheModeWriteCombined)
typedef enum {
    VertexInputVertices = 0,
    VertexInputUniforms = 1,
} VertexInput;
@interface Renderer : NSObject {
    id<MTLBuffer> _uniforms;
    id<MTLBuffer> _scratch;
}
@property (nonatomic, strong) id<MTLBuffer> vertices;
@property (nonatomic, strong) id<MTLBuffer> visible;
- (instancetype)initWithDevice:(id<MTLDevice>)device;
@end
