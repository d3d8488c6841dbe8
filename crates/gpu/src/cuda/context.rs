//! A GPU's context and its stream.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use super::driver::{Attribute, Driver, EVENT_DEFAULT, Handle, STREAM_NON_BLOCKING, status};
use crate::GpuError;

/// The primary context of one GPU, and the one stream that everything runs on. Kept alive by
/// every allocation and recording.
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) device: i32,
    handle: Handle,
    stream: Handle,
    /// Events that nobody uses now.
    events: Mutex<Vec<Handle>>,
}

impl Context {
    pub(super) fn new(driver: &'static Driver, device: i32) -> Result<Self, GpuError> {
        let mut handle = Handle::NULL;
        // SAFETY: the argument points to a handle; `device` is one of the driver's ordinals.
        let code = unsafe { (driver.primary_context_retain)(&mut handle, device) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        let mut context =
            Self { driver, device, handle, stream: Handle::NULL, events: Mutex::default() };
        context.enter()?;
        // SAFETY: the argument points to a handle; the context is current.
        let code = unsafe { (driver.stream_create)(&mut context.stream, STREAM_NON_BLOCKING) };
        driver.check("cuStreamCreate", code)?;
        Ok(context)
    }

    /// Makes the context current on this thread, as every call that follows needs.
    pub(super) fn enter(&self) -> Result<(), GpuError> {
        // SAFETY: the context was retained when `self` was made and is released when it is dropped.
        let code = unsafe { (self.driver.context_set_current)(self.handle) };
        self.driver.check("cuCtxSetCurrent", code)
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn stream(&self) -> Handle {
        self.stream
    }

    /// Waits for everything on the stream.
    pub(super) fn synchronize(&self) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: the stream belongs to the current context.
        let code = unsafe { (self.driver.stream_synchronize)(self.stream) };
        self.driver.check("cuStreamSynchronize", code)
    }

    /// Free and total bytes of the device's memory.
    pub(super) fn memory(&self) -> Result<(u64, u64), GpuError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both arguments point to sizes; the context is current.
        let code = unsafe { (self.driver.memory_info)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", code)?;
        Ok((free as u64, total as u64))
    }

    /// An event that is not in use; the context is current.
    pub(super) fn event(&self) -> Result<Handle, GpuError> {
        if let Some(event) = self.events.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(event);
        }
        let mut event = Handle::NULL;
        // SAFETY: the argument points to a handle; the context is current.
        let code = unsafe { (self.driver.event_create)(&mut event, EVENT_DEFAULT) };
        self.driver.check("cuEventCreate", code)?;
        Ok(event)
    }

    /// Gives an event back.
    pub(super) fn recycle(&self, event: Handle) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Marks the present end of the stream; the context is current.
    pub(super) fn record(&self, event: Handle) -> Result<(), GpuError> {
        // SAFETY: event and stream belong to the current context.
        let code = unsafe { (self.driver.event_record)(event, self.stream) };
        self.driver.check("cuEventRecord", code)
    }

    /// The driver's code once everything before `event` is done.
    pub(super) fn wait(&self, event: Handle) -> i32 {
        // SAFETY: the event belongs to this context.
        unsafe { (self.driver.event_synchronize)(event) }
    }

    /// Whether everything before `event` is done, also where it went wrong.
    pub(super) fn is_done(&self, event: Handle) -> bool {
        // SAFETY: the event belongs to this context.
        unsafe { (self.driver.event_query)(event) != status::NOT_READY }
    }

    /// Time between two events that are done.
    pub(super) fn elapsed(&self, start: Handle, end: Handle) -> Option<Duration> {
        let mut milliseconds = 0.0f32;
        // SAFETY: the argument points to a float; both events belong to this context.
        let code = unsafe { (self.driver.event_elapsed)(&mut milliseconds, start, end) };
        let seconds = milliseconds / 1e3;
        (code == status::SUCCESS).then(|| Duration::try_from_secs_f32(seconds).ok()).flatten()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        for event in self.events.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: the event belongs to this context and nobody has it any more.
            unsafe { (self.driver.event_destroy)(event) };
        }
        // SAFETY: the stream is ours (or null, which the driver refuses), and whatever used it
        // kept this context alive; the context was retained once.
        unsafe {
            (self.driver.stream_destroy)(self.stream);
            (self.driver.primary_context_release)(self.device);
        }
    }
}

/// An attribute of a device.
pub(super) fn attribute(
    driver: &Driver,
    device: i32,
    attribute: Attribute,
) -> Result<u32, GpuError> {
    let mut value = 0;
    // SAFETY: the first argument points to an integer; `device` is one of the driver's ordinals.
    let code = unsafe { (driver.device_attribute)(&mut value, attribute as i32, device) };
    driver.check("cuDeviceGetAttribute", code)?;
    Ok(value.unsigned_abs())
}
