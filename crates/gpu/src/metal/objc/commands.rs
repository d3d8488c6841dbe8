//! Command buffers and encoders.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::time::Duration;

use objc2::ProtocolType;
use objc2::rc::Retained;
use objc2::runtime::{AnyObject, NSObjectProtocol, ProtocolObject};
use objc2_foundation::{NSArray, NSError, NSRange, NSString};
use objc2_metal::{
    MTLBlitCommandEncoder, MTLCommandBuffer, MTLCommandBufferEncoderInfo,
    MTLCommandBufferEncoderInfoErrorKey, MTLCommandBufferStatus, MTLCommandEncoder,
    MTLCommandEncoderErrorState, MTLComputeCommandEncoder, MTLDispatchType, MTLResource, MTLSize,
};

use super::super::api::{
    BlitEncoder, CommandBuffer, ComputeEncoder, EncoderFailure, Failure, Status,
};
use super::{Objc, ObjcBuffer, ObjcPipeline};

/// `MTLCommandBuffer`.
#[derive(Clone)]
pub struct ObjcCommandBuffer(Retained<ProtocolObject<dyn MTLCommandBuffer>>);

// SAFETY: one thread encodes and commits it; what others do (wait, ask for the status) Metal allows from any thread.
unsafe impl Send for ObjcCommandBuffer {}
// SAFETY: as above.
unsafe impl Sync for ObjcCommandBuffer {}

impl ObjcCommandBuffer {
    pub(super) fn new(
        command_buffer: Retained<ProtocolObject<dyn MTLCommandBuffer>>,
        label: &str,
    ) -> Self {
        command_buffer.setLabel(Some(&NSString::from_str(label)));
        Self(command_buffer)
    }
}

impl CommandBuffer<Objc> for ObjcCommandBuffer {
    type Compute = ObjcComputeEncoder;
    type Blit = ObjcBlitEncoder;

    fn compute(&self, label: &str) -> Option<ObjcComputeEncoder> {
        let encoder = self.0.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent)?;
        encoder.setLabel(Some(&NSString::from_str(label)));
        Some(ObjcComputeEncoder { encoder, resources: Vec::new() })
    }

    fn blit(&self, label: &str) -> Option<ObjcBlitEncoder> {
        let encoder = self.0.blitCommandEncoder()?;
        encoder.setLabel(Some(&NSString::from_str(label)));
        Some(ObjcBlitEncoder(encoder))
    }

    fn commit(&self) {
        self.0.commit();
    }

    fn wait(&self) {
        self.0.waitUntilCompleted();
    }

    fn status(&self) -> Status {
        match self.0.status() {
            MTLCommandBufferStatus::Completed => {
                let seconds = self.0.GPUEndTime() - self.0.GPUStartTime();
                Status::Completed(Duration::try_from_secs_f64(seconds).ok())
            }
            MTLCommandBufferStatus::Error => {
                Status::Failed(self.0.error().map(|error| failure(&error)).unwrap_or_default())
            }
            _ => Status::Pending,
        }
    }
}

/// What Metal says of a command buffer that stopped.
fn failure(error: &NSError) -> Failure {
    // SAFETY: a constant of Metal's that is never changed.
    let key = unsafe { MTLCommandBufferEncoderInfoErrorKey };
    let encoders = error.userInfo().objectForKey(key).map(encoder_failures).unwrap_or_default();
    Failure { code: error.code(), message: error.localizedDescription().to_string(), encoders }
}

fn encoder_failures(value: Retained<AnyObject>) -> Vec<EncoderFailure> {
    let Ok(array) = value.downcast::<NSArray>() else {
        return Vec::new();
    };
    let Some(protocol) = <dyn MTLCommandBufferEncoderInfo>::protocol() else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for object in array.iter() {
        // SAFETY: every object of the array answers to this method of `NSObject`'s protocol.
        let object =
            unsafe { Retained::cast_unchecked::<ProtocolObject<dyn NSObjectProtocol>>(object) };
        if !object.conformsToProtocol(protocol) {
            continue;
        }
        // SAFETY: it conforms to the protocol.
        let info = unsafe {
            Retained::cast_unchecked::<ProtocolObject<dyn MTLCommandBufferEncoderInfo>>(object)
        };
        out.push(EncoderFailure {
            label: info.label().to_string(),
            state: state(info.errorState()),
            signposts: info.debugSignposts().iter().map(|text| text.to_string()).collect(),
        });
    }
    out
}

fn state(state: MTLCommandEncoderErrorState) -> &'static str {
    match state {
        MTLCommandEncoderErrorState::Completed => "completed",
        MTLCommandEncoderErrorState::Affected => "affected",
        MTLCommandEncoderErrorState::Pending => "never started",
        MTLCommandEncoderErrorState::Faulted => "faulted",
        _ => "in an unknown state",
    }
}

fn size([width, height, depth]: [u32; 3]) -> MTLSize {
    MTLSize { width: width as usize, height: height as usize, depth: depth as usize }
}

/// `MTLComputeCommandEncoder`.
pub struct ObjcComputeEncoder {
    encoder: Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>,
    /// Room for the resources of a barrier.
    resources: Vec<NonNull<ProtocolObject<dyn MTLResource>>>,
}

impl ComputeEncoder<Objc> for ObjcComputeEncoder {
    fn set_pipeline(&mut self, pipeline: &ObjcPipeline) {
        self.encoder.setComputePipelineState(&pipeline.0);
    }

    fn set_buffer(&mut self, index: usize, buffer: &ObjcBuffer, offset: usize) {
        buffer.check(offset, 1);
        // SAFETY: the offset is inside; the index is a parameter's of the kernel, of at most 31; the command buffer or
        // whoever made it keeps the buffer.
        unsafe { self.encoder.setBuffer_offset_atIndex(Some(buffer.object()), offset, index) };
    }

    fn set_bytes(&mut self, index: usize, bytes: &[u8]) {
        let pointer = NonNull::from(bytes).cast::<c_void>();
        // SAFETY: Metal copies the bytes; the index is as above.
        unsafe { self.encoder.setBytes_length_atIndex(pointer, bytes.len(), index) };
    }

    fn set_threadgroup_memory(&mut self, index: usize, bytes: usize) {
        // SAFETY: the index is the one that a kernel's signature gives.
        unsafe { self.encoder.setThreadgroupMemoryLength_atIndex(bytes, index) };
    }

    fn barrier(&mut self, buffers: &[ObjcBuffer]) {
        self.resources.clear();
        self.resources.extend(buffers.iter().map(|buffer| {
            let resource: &ProtocolObject<dyn MTLResource> =
                ProtocolObject::from_ref(buffer.object());
            NonNull::from(resource)
        }));
        if let Some(first) = NonNull::new(self.resources.as_mut_ptr()) {
            // SAFETY: `first` points to as many resources, which live during the call.
            unsafe {
                self.encoder.memoryBarrierWithResources_count(first, self.resources.len());
            }
        }
    }

    fn signpost(&mut self, text: &str) {
        self.encoder.insertDebugSignpost(&NSString::from_str(text));
    }

    fn dispatch(&mut self, threadgroups: [u32; 3], threads: [u32; 3]) {
        self.encoder.dispatchThreadgroups_threadsPerThreadgroup(size(threadgroups), size(threads));
    }

    fn end(self) {
        self.encoder.endEncoding();
    }
}

/// `MTLBlitCommandEncoder`.
pub struct ObjcBlitEncoder(Retained<ProtocolObject<dyn MTLBlitCommandEncoder>>);

impl BlitEncoder<Objc> for ObjcBlitEncoder {
    fn copy(
        &mut self,
        source: &ObjcBuffer,
        source_offset: usize,
        destination: &ObjcBuffer,
        destination_offset: usize,
        bytes: usize,
    ) {
        source.check(source_offset, bytes);
        destination.check(destination_offset, bytes);
        // SAFETY: both ranges are inside; the command buffer or whoever made it keeps the buffers.
        unsafe {
            self.0.copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size(
                source.object(),
                source_offset,
                destination.object(),
                destination_offset,
                bytes,
            );
        }
    }

    fn fill(&mut self, buffer: &ObjcBuffer, range: Range<usize>, value: u8) {
        buffer.check(range.start, range.len());
        let range = NSRange::new(range.start, range.len());
        self.0.fillBuffer_range_value(buffer.object(), range, value);
    }

    fn end(self) {
        self.0.endEncoding();
    }
}
