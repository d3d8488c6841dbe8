//! Libraries, pipelines and binary archives.

use std::ffi::c_void;
use std::path::Path;
use std::ptr::NonNull;

use marlin_kernels::signature::ScalarType;
use objc2::available;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSArray, NSError, NSString, NSURL};
use objc2_metal::{
    MTLBinaryArchive, MTLBinaryArchiveDescriptor, MTLCompileOptions, MTLComputePipelineDescriptor,
    MTLComputePipelineState, MTLDataType, MTLDevice, MTLFunctionConstantValues, MTLLanguageVersion,
    MTLLibrary, MTLMathMode, MTLPipelineOption,
};

use super::super::api::{PipelineLimits, PipelineRequest};
use super::{DeviceObject, saturated};

/// `MTLLibrary`.
pub struct ObjcLibrary(Retained<ProtocolObject<dyn MTLLibrary>>);

/// `MTLComputePipelineState`.
pub struct ObjcPipeline(pub(super) Retained<ProtocolObject<dyn MTLComputePipelineState>>);

impl ObjcPipeline {
    pub(super) fn limits(&self) -> PipelineLimits {
        PipelineLimits {
            max_threads: saturated(self.0.maxTotalThreadsPerThreadgroup()),
            simd_width: saturated(self.0.threadExecutionWidth()),
            threadgroup_bytes: saturated(self.0.staticThreadgroupMemoryLength()),
        }
    }
}

fn text(error: &NSError) -> String {
    error.localizedDescription().to_string()
}

pub(super) fn library(
    device: &DeviceObject,
    label: &str,
    source: &str,
) -> Result<ObjcLibrary, String> {
    let options = MTLCompileOptions::new();
    options.setLanguageVersion(MTLLanguageVersion::Version3_0);
    // Kernels have NaNs and infinities, and agree with the host to the bit where they say so.
    if available!(macos = 15.0, ios = 18.0, tvos = 18.0, visionos = 2.0) {
        options.setMathMode(MTLMathMode::Safe);
    } else {
        #[allow(deprecated, reason = "its successor came with macOS 15")]
        options.setFastMathEnabled(false);
    }
    let source = NSString::from_str(source);
    let library = device
        .newLibraryWithSource_options_error(&source, Some(&options))
        .map_err(|error| text(&error))?;
    library.setLabel(Some(&NSString::from_str(label)));
    Ok(ObjcLibrary(library))
}

/// The function with its constants set, and what the compiler shall know besides.
fn descriptor(
    library: &ObjcLibrary,
    request: &PipelineRequest<'_>,
) -> Result<Retained<MTLComputePipelineDescriptor>, String> {
    let values = MTLFunctionConstantValues::new();
    for (index, (ty, bits)) in request.constants.iter().enumerate() {
        let boolean = *bits != 0;
        let word = NonNull::from(bits).cast::<c_void>();
        let (pointer, ty) = match ty {
            ScalarType::Uint | ScalarType::Ulong => (word, MTLDataType::UInt),
            ScalarType::Int => (word, MTLDataType::Int),
            ScalarType::Float => (word, MTLDataType::Float),
            ScalarType::Bool => (NonNull::from(&boolean).cast(), MTLDataType::Bool),
        };
        // SAFETY: the pointer is to a value of the type's size, which Metal copies.
        unsafe { values.setConstantValue_type_atIndex(pointer, ty, index) };
    }
    let name = NSString::from_str(request.function);
    let function = library
        .0
        .newFunctionWithName_constantValues_error(&name, &values)
        .map_err(|error| text(&error))?;
    let descriptor = MTLComputePipelineDescriptor::new();
    descriptor.setLabel(Some(&name));
    descriptor.setComputeFunction(Some(&function));
    if let Some(threads) = request.threads {
        descriptor.setMaxTotalThreadsPerThreadgroup(threads as usize);
        // SAFETY: threadgroups of this pipeline have so many threads, and SIMD-groups 32 (checked after it is made).
        unsafe {
            descriptor
                .setThreadGroupSizeIsMultipleOfThreadExecutionWidth(threads.is_multiple_of(32));
        }
    }
    Ok(descriptor)
}

fn state(
    device: &DeviceObject,
    descriptor: &MTLComputePipelineDescriptor,
    option: MTLPipelineOption,
) -> Result<ObjcPipeline, String> {
    device
        .newComputePipelineStateWithDescriptor_options_reflection_error(descriptor, option, None)
        .map(ObjcPipeline)
        .map_err(|error| text(&error))
}

type Archive = Retained<ProtocolObject<dyn MTLBinaryArchive>>;

/// An archive from a file, or an empty one.
fn archive(device: &DeviceObject, from: Option<&Path>) -> Result<Archive, String> {
    let descriptor = MTLBinaryArchiveDescriptor::new();
    if let Some(path) = from {
        let url = url(path)?;
        descriptor.setUrl(Some(&url));
    }
    device.newBinaryArchiveWithDescriptor_error(&descriptor).map_err(|error| text(&error))
}

fn url(path: &Path) -> Result<Retained<NSURL>, String> {
    NSURL::from_file_path(path).ok_or_else(|| format!("{} is no path for Metal", path.display()))
}

pub(super) fn pipeline(
    device: &DeviceObject,
    library: &ObjcLibrary,
    request: &PipelineRequest<'_>,
    keep: Option<&Path>,
) -> Result<ObjcPipeline, String> {
    let descriptor = descriptor(library, request)?;
    // Compiled into the archive first, so that the pipeline is made from that and not compiled twice.
    let kept = keep.and_then(|path| {
        let archive = archive(device, None).ok()?;
        archive.addComputePipelineFunctionsWithDescriptor_error(&descriptor).ok()?;
        descriptor.setBinaryArchives(Some(&NSArray::from_slice(&[&*archive])));
        Some((archive, path))
    });
    let state = state(device, &descriptor, MTLPipelineOption::None)?;
    if let Some((archive, path)) = kept
        && let Ok(url) = url(path)
    {
        // That it cannot be kept only costs the next start some time.
        let _ = archive.serializeToURL_error(&url);
    }
    Ok(state)
}

pub(super) fn archived_pipeline(
    device: &DeviceObject,
    library: &ObjcLibrary,
    request: &PipelineRequest<'_>,
    path: &Path,
) -> Result<ObjcPipeline, String> {
    let descriptor = descriptor(library, request)?;
    let archive = archive(device, Some(path))?;
    descriptor.setBinaryArchives(Some(&NSArray::from_slice(&[&*archive])));
    state(device, &descriptor, MTLPipelineOption::FailOnBinaryArchiveMiss)
}
