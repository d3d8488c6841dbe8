#include "Renderer.h"
vertex VertexOut vertexMain(uint id [[vertex_id]],
                            constant Vertex *vertices [[buffer(VertexInputVertices)]],
                            constant Uniforms &uniforms [[buffer(VertexInputUniforms)]]) {
    VertexOut out;
    out.position = uniforms.projection * vertices[id].position;
    return out;
}
kernel void cull(device const Vertex *vertices [[buffer(0)]], device atomic_uint *visible [[buffer(1)]],
                 device uint *scratch [[buffer(2)]], constant uint &count [[buffer(3)]],
                 uint id [[thread_position_in_grid]]) {
    scratch[id] = 1;
    if (scratch[id] < count) atomic_fetch_add_explicit(visible, 1, memory_order_relaxed);
}
