//! The worker threads of a backend.
//!
//! A step of a small model is a hundred short stages, so threads are forked once per step
//! and meet at a [`Barrier`] between stages. Between steps they spin for a moment, because
//! the next step of a decode follows within microseconds, and then sleep.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without work spins before it sleeps: longer than the host's share of a
/// decode step (detokenising, printing), shorter than anybody's patience with a busy core.
const SPIN: Duration = Duration::from_micros(500);

/// Where all threads of a job meet.
pub(crate) struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    poisoned: AtomicBool,
}

impl Barrier {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Waits until every thread is here. What they wrote before is visible after.
    ///
    /// # Panics
    /// If another thread of the job panicked, since it will never come.
    #[inline]
    pub(crate) fn wait(&self) {
        if self.threads == 1 {
            return;
        }
        let generation = self.generation.load(Relaxed);
        if self.arrived.fetch_add(1, AcqRel) + 1 == self.threads {
            self.arrived.store(0, Relaxed);
            self.generation.store(generation.wrapping_add(1), Release);
            return;
        }
        let mut spins = 0u32;
        while self.generation.load(Acquire) == generation {
            spins += 1;
            if spins < 4096 {
                std::hint::spin_loop();
            } else {
                // A thread is late: it may need this very core.
                assert!(!self.poisoned.load(Relaxed), "another worker thread panicked");
                std::thread::yield_now();
            }
        }
    }
}

/// One thread's view of a job.
#[derive(Clone, Copy)]
pub(crate) struct Worker<'a> {
    /// 0 is the caller's own thread.
    pub(crate) index: usize,
    /// Threads of the job.
    pub(crate) count: usize,
    /// Where they meet.
    pub(crate) barrier: &'a Barrier,
}

type Job = dyn Fn(Worker<'_>) + Sync;

struct Shared {
    barrier: Barrier,
    /// Counts jobs; a worker runs one job per change.
    epoch: AtomicUsize,
    /// The current job; valid from the change of `epoch` until all workers are done.
    job: Mutex<Option<JobPointer>>,
    running: AtomicUsize,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct JobPointer(*const Job);

// SAFETY: the job is `Sync`, and `Pool::run` keeps it alive until every worker is done.
unsafe impl Send for JobPointer {}

/// A fixed set of threads that run one job at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// Starts `threads - 1` workers; the caller's thread is the first of every job.
    pub(crate) fn new(threads: NonZeroUsize) -> std::io::Result<Self> {
        let count = threads.get();
        let shared = Arc::new(Shared {
            barrier: Barrier::new(count),
            epoch: AtomicUsize::new(0),
            job: Mutex::new(None),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut workers = Vec::with_capacity(count - 1);
        for index in 1..count {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("marlin-cpu-{index}"));
            workers.push(thread.spawn(move || work(&shared, index, count))?);
        }
        Ok(Self { shared, workers, turn: Mutex::new(()) })
    }

    /// Threads of a job, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` on every thread and returns when all are done.
    ///
    /// # Panics
    /// If `job` panicked on any thread.
    pub(crate) fn run(&self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.barrier.arrived.store(0, Relaxed);
        shared.barrier.poisoned.store(false, Relaxed);
        shared.running.store(self.workers.len(), Relaxed);
        // SAFETY: only the lifetime changes; `run` does not return before `running` is 0,
        // after which no worker touches the job.
        let pointer: *const Job =
            unsafe { std::mem::transmute::<*const (dyn Fn(Worker<'_>) + Sync), *const Job>(job) };
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(JobPointer(pointer));
        shared.epoch.fetch_add(1, SeqCst);
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        let count = self.threads();
        let own = catch_unwind(AssertUnwindSafe(|| {
            job(Worker { index: 0, count, barrier: &shared.barrier });
        }));
        if own.is_err() {
            shared.barrier.poisoned.store(true, Release);
        }
        while shared.running.load(Acquire) != 0 {
            std::hint::spin_loop();
            if shared.barrier.poisoned.load(Relaxed) {
                std::thread::yield_now();
            }
        }
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match own {
            Err(panic) => resume_unwind(panic),
            Ok(()) => assert!(
                !shared.barrier.poisoned.load(Acquire),
                "a worker thread of the CPU backend panicked"
            ),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        {
            let _sleepers = self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches its jobs' panics, so there is nothing to learn from this.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, index: usize, count: usize) {
    let mut seen = 0;
    loop {
        seen = next_epoch(shared, seen);
        if shared.stop.load(SeqCst) {
            return;
        }
        let job = *shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(JobPointer(job)) = job {
            let worker = Worker { index, count, barrier: &shared.barrier };
            // SAFETY: the job lives until `running` is 0, which is after this call.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(worker) }));
            if result.is_err() {
                shared.barrier.poisoned.store(true, Release);
            }
            shared.running.fetch_sub(1, Release);
        }
    }
}

/// Waits until the epoch is no longer `seen`: first spinning, then asleep.
fn next_epoch(shared: &Shared, seen: usize) -> usize {
    let since = Instant::now();
    loop {
        for _ in 0..256 {
            let epoch = shared.epoch.load(Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        if since.elapsed() > SPIN {
            break;
        }
    }
    let mut sleepers = shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
    *sleepers += 1;
    loop {
        // Checked under the lock that `run` takes before it wakes anyone.
        let epoch = shared.epoch.load(SeqCst);
        if epoch != seen {
            *sleepers -= 1;
            return epoch;
        }
        sleepers = shared.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn every_thread_runs_the_job_once() {
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            for _ in 0..100 {
                let seen = AtomicU64::new(0);
                pool.run(&|w| {
                    seen.fetch_add(1 << (8 * w.index), Relaxed);
                });
                let expected = (0..threads).fold(0, |sum, i| sum | 1u64 << (8 * i));
                assert_eq!(seen.into_inner(), expected);
            }
        }
    }

    #[test]
    fn what_was_written_before_the_barrier_is_seen_after_it() {
        let pool = pool(3);
        let cells: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        pool.run(&|w| {
            for round in 1..=200 {
                cells[w.index].store(round, Relaxed);
                w.barrier.wait();
                assert!(cells.iter().all(|c| c.load(Relaxed) == round));
                w.barrier.wait();
            }
        });
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_pool_survives() {
        let pool = pool(3);
        for culprit in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|w| {
                    assert!(w.index != culprit, "on purpose");
                    w.barrier.wait();
                });
            }));
            assert!(result.is_err(), "thread {culprit}");
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|w| {
            w.barrier.wait();
            ran.fetch_add(1, Relaxed);
        });
        assert_eq!(ran.into_inner(), 3);
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = pool(2);
        std::thread::sleep(SPIN * 20);
        let ran = AtomicUsize::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Relaxed);
        });
        assert_eq!(ran.into_inner(), 2);
    }
}
