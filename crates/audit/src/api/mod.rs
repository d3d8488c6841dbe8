//! What the host APIs of Metal and its neighbours do: which calls make buffers, and which
//! calls read, write, bind or copy them.
//!
//! Names are in the canonical spelling of [`Call::name`](crate::ir::Call::name): Objective-C
//! selectors, PyObjC methods and objc2 methods all read `newBufferWithLength_options`. The facts
//! are those of the Metal API reference, the metal-cpp and objc2-metal bindings, metal-rs, wgpu,
//! PyTorch, numpy and MLX.

pub(crate) mod create;
pub(crate) mod touch;
