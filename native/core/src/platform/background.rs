//! One thread for what must not run where it arises: unmapping 100 MB takes milliseconds, removing
//! files takes a lock, and a destructor may run where nothing may block.

use super::fork::PerProcess;
use std::sync::mpsc;

type Job = Box<dyn FnOnce() + Send>;

struct Background(Option<mpsc::Sender<Job>>);

impl Default for Background {
    fn default() -> Self {
        super::keep_loaded();
        let (queue, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("shm-background".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                for job in jobs {
                    // A job that panics must not end the thread for those after it.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                }
            });
        Self(thread.ok().map(|_| queue))
    }
}

static BACKGROUND: PerProcess<Background> = PerProcess::new();

/// Runs `job` soon, in order. Where no thread is to be had it runs here.
pub(crate) fn run(job: impl FnOnce() + Send + 'static) {
    let mut job: Job = Box::new(job);
    if let Some(queue) = &BACKGROUND.get().0 {
        match queue.send(job) {
            Ok(()) => return,
            Err(mpsc::SendError(back)) => job = back,
        }
    }
    job();
}

/// Waits until the jobs that were handed over before have run.
pub(crate) fn settle() {
    let (done, wait) = mpsc::channel();
    run(move || {
        let _ = done.send(());
    });
    let _ = wait.recv();
}
