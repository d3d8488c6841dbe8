//! Audits the source of Metal host code: which storage mode every buffer has and should have, and
//! which copies are made. And shows the audit of a run of this project's own ([`run`]).
//!
//! Python (PyObjC, PyTorch, numpy, MLX), Rust (objc2-metal, metal-rs, candle, wgpu), Objective-C,
//! Objective-C++, C++ (metal-cpp), Swift and Metal shaders are parsed with tree-sitter and lowered to
//! one intermediate representation ([`ir`]), which one analysis follows from the creation of
//! every buffer to the kernels it is bound to. The advice is [`marlin_placement::policy`]'s, the table that
//! the allocators of this project use.
//!
//! ```
//! use marlin_audit::source::{Options, audit_text};
//! use marlin_audit::ir::Language;
//!
//! let report = audit_text(
//!     &[("scratch.py", Language::Python, "
//! def scratch(device, encoder):
//!     tmp = device.newBufferWithLength_options_(1024, MTLResourceStorageModeShared)
//! ")],
//!     &Options::default(),
//! );
//! assert_eq!(report.buffers[0].buffer, "tmp");
//! assert_eq!(report.buffers[0].suggested_mode, "Private if GPU-only; otherwise Shared");
//! ```

mod api;
mod classify;
mod findings;
mod flow;
mod front;
pub mod ir;
mod lines;
pub mod msl;
mod purpose;
pub mod report;
pub mod rules;
pub mod run;
pub mod source;

#[cfg(feature = "cli")]
pub mod cli;
