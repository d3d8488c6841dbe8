//! How the items of a stage are shared among threads.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A counter on a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Cursor(AtomicUsize);

/// One cursor per stage and thread.
///
/// Each thread first takes chunks of its own contiguous share, which the hardware
/// prefetchers like, and then of the others', so that a thread whose core was taken away
/// for a moment does not hold up the stage.
pub(crate) struct Cursors {
    cursors: Box<[Cursor]>,
    threads: usize,
}

impl Cursors {
    pub(crate) fn new(stages: usize, threads: usize) -> Self {
        Self { cursors: (0..stages * threads).map(|_| Cursor::default()).collect(), threads }
    }

    /// Back to the start, before a step.
    pub(crate) fn reset(&self) {
        for cursor in &self.cursors {
            cursor.0.store(0, Relaxed);
        }
    }

    /// Calls `run` with chunks of `0..items` until all threads together have had all of them.
    #[inline]
    pub(crate) fn share(
        &self,
        stage: usize,
        thread: usize,
        items: usize,
        chunk: usize,
        mut run: impl FnMut(Range<usize>),
    ) {
        let cursors = &self.cursors[stage * self.threads..][..self.threads];
        for i in 0..self.threads {
            let owner = (thread + i) % self.threads;
            let Range { start, end } = own_share(items, owner, self.threads);
            loop {
                let at = start + cursors[owner].0.fetch_add(chunk, Relaxed);
                if at >= end {
                    break;
                }
                run(at..end.min(at + chunk));
            }
        }
    }

    /// The same in chunks of half of what is left, and at most `chunk`: few calls for the most part, and
    /// at the end nobody waits for more than one item of another's.
    #[inline]
    pub(crate) fn share_dwindling(
        &self,
        stage: usize,
        thread: usize,
        items: usize,
        chunk: usize,
        mut run: impl FnMut(Range<usize>),
    ) {
        let cursors = &self.cursors[stage * self.threads..][..self.threads];
        for i in 0..self.threads {
            let owner = (thread + i) % self.threads;
            let Range { start, end } = own_share(items, owner, self.threads);
            let take = |done: usize| (end - start - done).div_ceil(2).min(chunk);
            let claim = |done| (done < end - start).then(|| done + take(done));
            while let Ok(done) = cursors[owner].0.fetch_update(Relaxed, Relaxed, claim) {
                run(start + done..start + done + take(done));
            }
        }
    }
}

/// The items that a thread begins with.
pub(crate) fn own_share(items: usize, thread: usize, threads: usize) -> Range<usize> {
    thread * items / threads..(thread + 1) * items / threads
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_item_is_done_once_however_many_threads_there_are() {
        for threads in 1..5 {
            for items in [0, 1, 2, 7, 64, 1000] {
                for chunk in [1, 3, 16] {
                    let cursors = Cursors::new(2, threads);
                    let done: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
                    let count = |range: Range<usize>| {
                        assert!((1..=chunk).contains(&range.len()));
                        for i in range {
                            done[i].fetch_add(1, Relaxed);
                        }
                    };
                    std::thread::scope(|scope| {
                        for thread in 0..threads {
                            let cursors = &cursors;
                            scope.spawn(move || {
                                cursors.share(0, thread, items, chunk, count);
                                cursors.share_dwindling(1, thread, items, chunk, count);
                            });
                        }
                    });
                    assert!(done.iter().all(|d| d.load(Relaxed) == 2));
                }
            }
        }
    }

    #[test]
    fn one_thread_does_what_the_others_leave() {
        let cursors = Cursors::new(1, 4);
        let mut seen = 0;
        cursors.share(0, 2, 100, 8, |range| seen += range.len());
        assert_eq!(seen, 100);
        cursors.share(0, 0, 100, 8, |range| seen += range.len());
        assert_eq!(seen, 100);
        cursors.reset();
        cursors.share(0, 0, 100, 8, |range| seen += range.len());
        assert_eq!(seen, 200);
    }
}
