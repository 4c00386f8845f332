//! The execution seam: background work is a struct with a bounded `step()`; this module owns the
//! loop around it.
//!
//! In production each worker gets a named OS thread; in tests and in simulation nothing runs until
//! somebody calls `step` inline. Owns: threads, their wake-ups, their end. Never: what a step does.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something; call again at once.
    Worked,
    /// Nothing to do until woken.
    Idle,
    /// Nothing to do until woken or until this much time has passed.
    Sleep(Duration),
    /// The worker is finished.
    Done,
}

/// A background worker: `step` does a bounded piece of work, without a loop, without sleeping, and
/// keeps no lock between steps.
pub trait Worker: Send {
    /// One bounded piece of work.
    fn step(&mut self) -> Progress;
}

/// Lets the calling thread do nothing for so long: for writers that are slowed, who have nothing to wait for.
#[expect(clippy::disallowed_methods, reason = "this is the execution seam")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[derive(Debug, Default)]
struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SignalState {
    woken: bool,
    stop: bool,
}

/// Wakes a worker. Clones wake the same one; waking a worker that has no thread does nothing.
#[derive(Clone, Default)]
pub struct Wake(Arc<Signal>);

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}

impl Wake {
    /// A handle not tied to a worker yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the worker run its next step now.
    pub fn wake(&self) {
        let mut s = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !s.woken {
            s.woken = true;
            self.0.changed.notify_all();
        }
    }

    fn begin(&self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).stop = false;
    }

    fn stop(&self) {
        let mut s = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.stop = true;
        self.0.changed.notify_all();
    }

    /// Waits for a wake-up (which it consumes), a stop, or the timeout. False on stop.
    fn wait(&self, timeout: Option<Duration>) -> bool {
        let s = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = |s: &mut SignalState| !s.woken && !s.stop;
        let mut s = match timeout {
            Some(t) => self.0.changed.wait_timeout_while(s, t, pending).unwrap_or_else(PoisonError::into_inner).0,
            None => self.0.changed.wait_while(s, pending).unwrap_or_else(PoisonError::into_inner),
        };
        s.woken = false;
        !s.stop
    }

    fn stopped(&self) -> bool {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).stop
    }
}

/// How much lower than others the priority of background threads is, in the system's steps of niceness.
///
/// Ten made merges fall so far behind two busy readers that scans had to look into twenty tables.
const BACKGROUND: i32 = 5;
/// As [`BACKGROUND`], of threads that only help others: where processors are short they get next to nothing.
const SPARE: i32 = 15;

/// On Linux niceness is a thread's own; elsewhere it is the process's, and stays.
fn lower_priority(nice: i32) {
    #[cfg(target_os = "linux")]
    if nice > 0 {
        // Work goes on without it as well.
        let _ = rustix::process::nice(nice);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nice;
}

/// A worker's thread; dropping it stops the worker after its present step and joins the thread.
#[derive(Debug)]
pub struct WorkerThread {
    wake: Wake,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl WorkerThread {
    /// Starts a named thread that steps `worker` until it is done or stopped. `wake` is the handle
    /// by which others rouse it.
    ///
    /// # Errors
    /// The operating system's, when no thread can be made.
    pub fn spawn(name: &str, wake: Wake, worker: impl Worker + 'static) -> std::io::Result<Self> {
        Self::spawn_at(name, wake, 0, worker)
    }

    /// [`WorkerThread::spawn`] for work that can wait: where processors are short, readers and writers get them first.
    ///
    /// # Errors
    /// As [`WorkerThread::spawn`].
    pub fn spawn_in_background(name: &str, wake: Wake, worker: impl Worker + 'static) -> std::io::Result<Self> {
        Self::spawn_at(name, wake, BACKGROUND, worker)
    }

    /// [`WorkerThread::spawn`] for work that others do as well: it is for processors that would be idle.
    ///
    /// # Errors
    /// As [`WorkerThread::spawn`].
    pub fn spawn_for_spare_time(name: &str, wake: Wake, worker: impl Worker + 'static) -> std::io::Result<Self> {
        Self::spawn_at(name, wake, SPARE, worker)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the execution seam")]
    fn spawn_at(name: &str, wake: Wake, nice: i32, mut worker: impl Worker + 'static) -> std::io::Result<Self> {
        let signal = wake.clone();
        // The handle may have been another worker's, which was stopped.
        signal.begin();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            lower_priority(nice);
            loop {
                let go_on = match worker.step() {
                    Progress::Worked => !signal.stopped(),
                    Progress::Idle => signal.wait(None),
                    Progress::Sleep(d) => signal.wait(Some(d)),
                    Progress::Done => false,
                };
                if !go_on {
                    return;
                }
            }
        })?;
        Ok(Self { wake, thread: Some(thread) })
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.wake.stop();
        if let Some(t) = self.thread.take() {
            // A worker that drops its own handle must not wait for itself.
            if t.thread().id() != std::thread::current().id() {
                let _ = t.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Counter(mpsc::Sender<u32>, u32);

    impl Worker for Counter {
        fn step(&mut self) -> Progress {
            self.1 += 1;
            let _ = self.0.send(self.1);
            if self.1 == 3 { Progress::Done } else { Progress::Idle }
        }
    }

    #[test]
    fn a_worker_steps_once_per_wake_up_and_ends() {
        let (tx, rx) = mpsc::channel();
        let wake = Wake::new();
        let t = WorkerThread::spawn("test-worker", wake.clone(), Counter(tx, 0)).unwrap();
        for n in 1..=3 {
            assert_eq!(rx.recv(), Ok(n));
            wake.wake();
        }
        assert!(rx.recv().is_err());
        drop(t);
    }
}
