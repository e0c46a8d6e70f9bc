//! One thread for what must not run where it arises: unmapping 100 MB takes milliseconds, removing
//! files takes a lock, and a destructor may run where nothing may block; and for what is to happen later.

use super::fork::PerProcess;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

type Job = Box<dyn FnOnce() + Send>;

/// A job, and when it is due; `None` is at once.
type Order = (Option<Instant>, Job);

struct Background(Option<mpsc::Sender<Order>>);

impl Default for Background {
    fn default() -> Self {
        super::keep_loaded();
        let (queue, orders) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new()
            .name("shm-background".into())
            .stack_size(256 * 1024)
            .spawn(move || work(&orders));
        Self(thread.ok().map(|_| queue))
    }
}

fn work(orders: &mpsc::Receiver<Order>) {
    // A handful at most: whoever asks for later asks once for all that it has.
    let mut later: Vec<(Instant, Job)> = Vec::new();
    loop {
        let next = (0..later.len()).min_by_key(|at| later[*at].0);
        let order = match next {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => {
                let left = later[at].0.saturating_duration_since(Instant::now());
                orders.recv_timeout(left)
            }
        };
        match (order, next) {
            (Ok((None, job)), _) => perform(job),
            (Ok((Some(due), job)), _) => later.push((due, job)),
            (Err(RecvTimeoutError::Timeout), Some(at)) => perform(later.swap_remove(at).1),
            (Err(_), _) => return,
        }
    }
}

fn perform(job: Job) {
    // A job that panics must not end the thread for those after it.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
}

static BACKGROUND: PerProcess<Background> = PerProcess::new();

/// Runs `job` soon, in order. Where no thread is to be had it runs here.
pub(crate) fn run(job: impl FnOnce() + Send + 'static) {
    if let Err(job) = order(None, Box::new(job)) {
        job();
    }
}

/// Runs `job` when `delay` has passed. False where no thread is to be had: it will not run.
pub(crate) fn run_after(delay: Duration, job: impl FnOnce() + Send + 'static) -> bool {
    order(Some(Instant::now() + delay), Box::new(job)).is_ok()
}

fn order(due: Option<Instant>, job: Job) -> Result<(), Job> {
    match &BACKGROUND.get().0 {
        Some(queue) => queue
            .send((due, job))
            .map_err(|mpsc::SendError((_, job))| job),
        None => Err(job),
    }
}

/// Waits until the jobs that were handed over before have run.
pub(crate) fn settle() {
    let (done, wait) = mpsc::channel();
    run(move || {
        let _ = done.send(());
    });
    let _ = wait.recv();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_first_runs_first_and_what_is_due_now_before_it() {
        let (tell, told) = mpsc::channel();
        let say = |word: &'static str| {
            let tell = tell.clone();
            move || tell.send(word).unwrap()
        };
        assert!(run_after(Duration::from_millis(80), say("last")));
        assert!(run_after(Duration::from_millis(40), say("second")));
        run(say("first"));
        let heard: Vec<_> = told.iter().take(3).collect();
        assert_eq!(heard, ["first", "second", "last"]);
    }
}
