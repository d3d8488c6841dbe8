//! The calls of a recording: worked out once when it is recorded, made for each submission.

use std::sync::Arc;

use marlin_kernels::{Allocation, Argument, Dispatch, Grid, InlineBytes};

use super::api::{Api, BlitEncoder, CommandBuffer, ComputeEncoder};
use super::buffer::MetalAllocation;
use super::context::Context;
use super::pipeline::Pipeline;
use crate::hazards::Hazards;
use crate::{Command, GpuError};

/// Index of the threadgroup memory that a launcher sizes: a kernel has one at most.
const THREADGROUP_INDEX: usize = 0;

/// The error of a queue or command buffer that gives nothing more.
pub(super) fn no_encoder(what: &str) -> GpuError {
    GpuError::Driver { call: "MTLCommandBuffer", reason: format!("Metal gave no {what}") }
}

/// A change of an encoder's bindings.
enum Bind<A: Api> {
    Buffer { index: usize, buffer: A::Buffer, offset: usize },
    Bytes { index: usize, bytes: InlineBytes },
    Threadgroup { bytes: usize },
}

/// A dispatch, as what changes from the one before it.
struct DispatchStep<A: Api> {
    pipeline: Arc<Pipeline<A>>,
    /// Whether the pipeline is another one.
    changes: bool,
    binds: Vec<Bind<A>>,
    /// What a barrier before it names; none, and there is no barrier.
    barrier: Vec<A::Buffer>,
    grid: Grid,
}

enum BlitStep<A: Api> {
    Copy { from: A::Buffer, from_offset: usize, to: A::Buffer, to_offset: usize, bytes: usize },
    Fill { buffer: A::Buffer, start: usize, end: usize, value: u8 },
}

/// What one encoder does.
enum Pass<A: Api> {
    Compute(Vec<DispatchStep<A>>),
    Blit(Vec<BlitStep<A>>),
}

/// What is bound at an index, so that it need not be bound again.
#[derive(Clone, PartialEq)]
enum Bound {
    /// Address of the allocation, 0 for what stands in for an absent one; offset.
    Buffer(usize, usize),
    Bytes(InlineBytes),
}

/// A recording's calls.
pub(super) struct Passes<A: Api> {
    passes: Vec<Pass<A>>,
}

/// Works out the calls.
pub(super) struct Planner<'c, A: Api> {
    context: &'c Arc<Context<A>>,
    hazards: Hazards,
    passes: Vec<Pass<A>>,
    bound: Vec<Option<Bound>>,
    threadgroup: usize,
}

/// In units of the host's; checked against an allocation, which fits the address space.
fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl<'c, A: Api> Planner<'c, A> {
    pub(super) fn new(context: &'c Arc<Context<A>>) -> Self {
        let (passes, bound) = (Vec::new(), Vec::new());
        Self { context, hazards: Hazards::new(), passes, bound, threadgroup: 0 }
    }

    /// Appends a command that was checked; dispatches come with their pipelines.
    pub(super) fn push(
        &mut self,
        command: &Command,
        pipeline: Option<&Arc<Pipeline<A>>>,
    ) -> Result<(), GpuError> {
        match (command, pipeline) {
            (Command::Dispatch(dispatch), Some(pipeline)) => {
                if !matches!(self.passes.last(), Some(Pass::Compute(_))) {
                    self.open(Pass::Compute(Vec::new()));
                }
                let barrier = self.wait_for(command)?;
                self.dispatch(dispatch, pipeline, barrier)
            }
            (Command::Dispatch(_), None) => unreachable!("the caller compiled one for each"),
            (Command::Copy { .. } | Command::Fill { .. }, _) => {
                if !matches!(self.passes.last(), Some(Pass::Blit(_))) {
                    self.open(Pass::Blit(Vec::new()));
                }
                // Blits have no barriers: an encoder of its own orders them.
                if !self.wait_for(command)?.is_empty() {
                    self.open(Pass::Blit(Vec::new()));
                    self.hazards.before(command);
                }
                self.blit(command)
            }
        }
    }

    pub(super) fn finish(self) -> Passes<A> {
        Passes { passes: self.passes }
    }

    /// Begins an encoder. Metal's hazard tracking orders what encoders do to the same buffer.
    fn open(&mut self, pass: Pass<A>) {
        self.hazards.settle();
        self.bound.clear();
        self.threadgroup = 0;
        self.passes.push(pass);
    }

    fn own<'a>(
        &self,
        allocation: &'a Arc<dyn Allocation>,
    ) -> Result<&'a MetalAllocation<A>, GpuError> {
        MetalAllocation::of(allocation, self.context)
    }

    /// What a barrier before the command must name.
    fn wait_for(&mut self, command: &Command) -> Result<Vec<A::Buffer>, GpuError> {
        let named = self.hazards.before(command);
        named.iter().map(|one| self.own(one).map(|own| own.buffer.clone())).collect()
    }

    fn dispatch(
        &mut self,
        dispatch: &Dispatch,
        pipeline: &Arc<Pipeline<A>>,
        barrier: Vec<A::Buffer>,
    ) -> Result<(), GpuError> {
        let mut binds = Vec::new();
        for (index, argument) in dispatch.arguments.iter().enumerate() {
            let (wanted, bind) = self.bind(index, argument)?;
            if self.bound.len() <= index {
                self.bound.resize(index + 1, None);
            }
            if self.bound[index].as_ref() != Some(&wanted) {
                self.bound[index] = Some(wanted);
                binds.push(bind);
            }
        }
        if dispatch.pipeline.kernel.threadgroup.is_some() {
            // Metal wants multiples of 16 bytes, and more than none.
            let bytes = index(dispatch.threadgroup_bytes.max(1).into()).next_multiple_of(16);
            if self.threadgroup != bytes {
                self.threadgroup = bytes;
                binds.push(Bind::Threadgroup { bytes });
            }
        }
        let Some(Pass::Compute(steps)) = self.passes.last_mut() else {
            unreachable!("`push` opened a compute pass");
        };
        let before = steps.last().map(|step| &step.pipeline);
        let changes = before.is_none_or(|before| !Arc::ptr_eq(before, pipeline));
        let (pipeline, grid) = (pipeline.clone(), dispatch.grid);
        steps.push(DispatchStep { pipeline, changes, binds, barrier, grid });
        Ok(())
    }

    fn bind(&self, at: usize, argument: &Argument) -> Result<(Bound, Bind<A>), GpuError> {
        Ok(match argument {
            Argument::Buffer { allocation, offset, bytes, .. } if *bytes > 0 => {
                let (own, offset) = (self.own(allocation)?, index(*offset));
                let address = Arc::as_ptr(allocation).cast::<u8>() as usize;
                let buffer = own.buffer.clone();
                (Bound::Buffer(address, offset), Bind::Buffer { index: at, buffer, offset })
            }
            // Nothing of it is touched, and it may begin at its memory's end, where Metal binds nothing.
            Argument::Buffer { .. } | Argument::Absent => {
                let buffer = self.context.absent.clone();
                (Bound::Buffer(0, 0), Bind::Buffer { index: at, buffer, offset: 0 })
            }
            Argument::Inline(bytes) => {
                (Bound::Bytes(bytes.clone()), Bind::Bytes { index: at, bytes: bytes.clone() })
            }
        })
    }

    fn blit(&mut self, command: &Command) -> Result<(), GpuError> {
        let step = match command {
            Command::Copy { source, destination } => BlitStep::Copy {
                from: self.own(&source.allocation)?.buffer.clone(),
                from_offset: index(source.offset),
                to: self.own(&destination.allocation)?.buffer.clone(),
                to_offset: index(destination.offset),
                bytes: index(source.bytes),
            },
            Command::Fill { region, value } => BlitStep::Fill {
                buffer: self.own(&region.allocation)?.buffer.clone(),
                start: index(region.offset),
                end: index(region.offset + region.bytes),
                value: *value,
            },
            Command::Dispatch(_) => unreachable!("`push` sends dispatches elsewhere"),
        };
        if let Some(Pass::Blit(steps)) = self.passes.last_mut() {
            steps.push(step);
        }
        Ok(())
    }
}

impl<A: Api> Passes<A> {
    /// Makes the calls.
    pub(super) fn encode(
        &self,
        context: &Context<A>,
        command_buffer: &A::CommandBuffer,
        label: &str,
    ) -> Result<(), GpuError> {
        for pass in &self.passes {
            match pass {
                Pass::Compute(steps) => {
                    let mut encoder = command_buffer
                        .compute(label)
                        .ok_or_else(|| no_encoder("compute encoder"))?;
                    for step in steps {
                        step.encode(&mut encoder, context.signposts);
                    }
                    encoder.end();
                }
                Pass::Blit(steps) => {
                    let mut encoder =
                        command_buffer.blit(label).ok_or_else(|| no_encoder("blit encoder"))?;
                    for step in steps {
                        step.encode(&mut encoder);
                    }
                    encoder.end();
                }
            }
        }
        Ok(())
    }
}

impl<A: Api> DispatchStep<A> {
    fn encode(&self, encoder: &mut impl ComputeEncoder<A>, signposts: bool) {
        if !self.barrier.is_empty() {
            encoder.barrier(&self.barrier);
        }
        if self.changes {
            encoder.set_pipeline(&self.pipeline.state);
        }
        for bind in &self.binds {
            match bind {
                Bind::Buffer { index, buffer, offset } => {
                    encoder.set_buffer(*index, buffer, *offset);
                }
                Bind::Bytes { index, bytes } => encoder.set_bytes(*index, bytes.bytes()),
                Bind::Threadgroup { bytes } => {
                    encoder.set_threadgroup_memory(THREADGROUP_INDEX, *bytes);
                }
            }
        }
        if signposts {
            encoder.signpost(&self.pipeline.symbol);
        }
        encoder.dispatch(self.grid.threadgroups, self.grid.threads);
    }
}

impl<A: Api> BlitStep<A> {
    fn encode(&self, encoder: &mut impl BlitEncoder<A>) {
        match self {
            Self::Copy { from, from_offset, to, to_offset, bytes } => {
                encoder.copy(from, *from_offset, to, *to_offset, *bytes);
            }
            Self::Fill { buffer, start, end, value } => encoder.fill(buffer, *start..*end, *value),
        }
    }
}
