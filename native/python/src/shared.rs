//! What a `Writer`, its loans and the arrays in its slots share: the core's writer, which moves
//! between being free, being on loan and being gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use snakepit_shm::{Descriptor, Onlooker, OwnedLoan, Pool, SegmentWriter, ShmError};

use crate::error::{Failure, Outcome};
use crate::fork::Tied;

pub(crate) struct Shared {
    pub(crate) name: String,
    /// The most bytes that a value can have.
    pub(crate) capacity: usize,
    /// Nobody runs Python code while holding it, and nobody who has the GIL waits for it: whoever
    /// gets it may have to take the GIL next (`lock_py_attached` does).
    state: Mutex<State>,
    /// Told when a loan ends.
    returned: Condvar,
    closed: AtomicBool,
    /// Cloned into every object that owns an array over a slot.
    exported: Mutex<Arc<Exported>>,
}

/// What objects that own arrays over slots have in common; gone with the last of them, once the writer has.
#[derive(Default)]
pub(crate) struct Exported {
    /// While they live, nobody uses the memory again.
    onlooker: OnceLock<Onlooker>,
}

enum State {
    Free(Tied<SegmentWriter>),
    /// `brief`: within one call of `write`, so others wait for its end; else within a `with`
    /// block of the user, whose end nobody knows.
    Loaned {
        loan: Tied<OwnedLoan>,
        brief: bool,
    },
    Closed,
}

impl Shared {
    pub(crate) fn new(writer: SegmentWriter) -> Self {
        Self {
            name: writer.name().to_owned(),
            capacity: writer.capacity(),
            state: Mutex::new(State::Free(Tied::new(writer))),
            returned: Condvar::new(),
            closed: AtomicBool::new(false),
            exported: Mutex::default(),
        }
    }

    /// A share in the count of objects that own arrays over slots.
    pub(crate) fn export(&self) -> Arc<Exported> {
        Arc::clone(&self.exported())
    }

    fn exported(&self) -> MutexGuard<'_, Arc<Exported>> {
        // Nothing panics while it is held.
        self.exported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects that own arrays over slots.
    fn owners(&self) -> usize {
        Arc::strong_count(&self.exported()) - 1
    }

    /// The writer is about to give its claim back: what such objects look at stays theirs until they go.
    fn announce_owners(&self, writer: &SegmentWriter) {
        if self.owners() > 0 {
            let _ = self.exported().onlooker.set(writer.onlooker()); // told before: the same
        }
    }

    /// The writer has gone: from now on its owners alone hold the memory.
    fn part(&self) {
        self.closed.store(true, Ordering::Release);
        let theirs = std::mem::take(&mut *self.exported());
        drop(theirs); // not under the lock
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// `f` on the writer, with the GIL held; for calls that take no time.
    pub(crate) fn with<R>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut SegmentWriter) -> Outcome<R>,
    ) -> Outcome<R> {
        loop {
            let mut state = self
                .state
                .lock_py_attached(py)
                .unwrap_or_else(PoisonError::into_inner);
            if !matches!(*state, State::Loaned { brief: true, .. }) {
                return f(self.free(&mut state)?);
            }
            drop(state);
            py.detach(|| drop(self.lock()));
        }
    }

    /// `f` on the writer; the caller holds no GIL.
    pub(crate) fn with_detached<R>(
        &self,
        f: impl FnOnce(&mut SegmentWriter) -> Outcome<R>,
    ) -> Outcome<R> {
        f(self.free(&mut self.lock())?)
    }

    /// The state, once no brief loan is under way. The caller holds no GIL: the loan's end may
    /// need it.
    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.returned
            .wait_while(state, |state| {
                matches!(state, State::Loaned { brief: true, .. })
            })
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn free<'a>(&self, state: &'a mut State) -> Outcome<&'a mut SegmentWriter> {
        match state {
            State::Free(writer) if writer.is_inherited() => Err(self.inherited()),
            State::Free(writer) => writer.get_mut().ok_or_else(|| self.closed_error().into()),
            State::Loaned { .. } => Err(self.loaned()),
            State::Closed => Err(self.closed_error().into()),
        }
    }

    /// Takes the writer out of its state; on an error the state is as before.
    fn take(&self, state: &mut State) -> Outcome<SegmentWriter> {
        self.free(state)?;
        match std::mem::replace(state, State::Closed) {
            State::Free(writer) => writer.into_inner().ok_or_else(|| self.inherited()),
            State::Loaned { .. } | State::Closed => Err(self.closed_error().into()),
        }
    }

    /// Begins a loan; returns the address of the slot. The caller holds no GIL.
    pub(crate) fn begin(&self, brief: bool) -> Outcome<usize> {
        let mut state = self.lock();
        match self.take(&mut state)?.into_loan() {
            Ok(mut loan) => {
                let address = loan.as_mut_ptr().expose_provenance();
                *state = State::Loaned {
                    loan: Tied::new(loan),
                    brief,
                };
                Ok(address)
            }
            Err(failed) => {
                let (writer, error) = *failed;
                *state = State::Free(Tied::new(writer));
                Err(error.into())
            }
        }
    }

    /// Ends the loan and publishes its first `len` bytes. The caller holds no GIL.
    pub(crate) fn publish(&self, len: usize, descriptor: &Descriptor) -> Outcome<u64> {
        self.finish(|loan| match loan.publish(len, descriptor) {
            Ok((writer, version)) => (writer, Ok(version)),
            Err(failed) => {
                let (loan, error) = *failed;
                (loan.abandon(), Err(error.into()))
            }
        })
    }

    /// Ends the loan and publishes nothing.
    pub(crate) fn abandon(&self, py: Python<'_>) {
        py.detach(|| self.abandon_detached());
    }

    /// [`Self::abandon`] for a caller that holds no GIL.
    pub(crate) fn abandon_detached(&self) {
        // Without a loan there is nothing to abandon.
        let _ = self.finish(|loan| (loan.abandon(), Ok(0)));
    }

    /// The caller holds no GIL.
    fn finish(&self, end: impl FnOnce(OwnedLoan) -> (SegmentWriter, Outcome<u64>)) -> Outcome<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Loaned { .. }) {
            return Err(self.closed_error().into());
        }
        let State::Loaned { loan, .. } = std::mem::replace(&mut *state, State::Closed) else {
            return Err(self.closed_error().into());
        };
        let outcome = match loan.into_inner() {
            None => Err(self.inherited()),
            Some(loan) => {
                let (writer, outcome) = end(loan);
                *state = State::Free(Tied::new(writer));
                outcome
            }
        };
        drop(state);
        self.returned.notify_all();
        outcome
    }

    /// Ends the writer with `end`; a second time does nothing. The caller holds no GIL.
    pub(crate) fn end(
        &self,
        end: impl FnOnce(SegmentWriter) -> snakepit_shm::Result<()>,
    ) -> Outcome<()> {
        self.end_beside(0, end)
    }

    /// [`Self::end`] while `owners` objects still own the right to an array over the slot, and have none: for
    /// whoever is told that the last one is on its way out.
    pub(crate) fn end_beside(
        &self,
        owners: usize,
        end: impl FnOnce(SegmentWriter) -> snakepit_shm::Result<()>,
    ) -> Outcome<()> {
        let mut state = self.lock();
        if matches!(*state, State::Closed) {
            return Ok(());
        }
        self.free(&mut state)?;
        if self.owners() > owners {
            return Err(Failure::views_alive(
                &self.name,
                format!(
                    "arrays that were on loan from segment {} are still alive",
                    self.name
                ),
                "delete them (or copy what is still needed), then close again",
            ));
        }
        let writer = self.take(&mut state)?;
        self.closed.store(true, Ordering::Release);
        Ok(end(writer)?)
    }

    /// Gives the sealed segment away, arrays in its slots or not. The caller holds no GIL.
    pub(crate) fn give_away(&self, ttl: Duration) -> Outcome<()> {
        let mut state = self.lock();
        let writer = self.free(&mut state)?;
        self.announce_owners(writer);
        Pool::of_writer(writer).give_away(writer, ttl)?;
        self.take(&mut state)?.release()?;
        self.part();
        Ok(())
    }

    /// Gives the writer's place up, arrays in its slots or not. The caller holds no GIL.
    pub(crate) fn leave(&self) -> Outcome<()> {
        let mut state = self.lock();
        let writer = self.free(&mut state)?;
        self.announce_owners(writer);
        self.take(&mut state)?.release()?;
        self.part();
        Ok(())
    }

    fn closed_error(&self) -> ShmError {
        ShmError::Closed {
            name: self.name.clone(),
        }
    }

    fn loaned(&self) -> Failure {
        Failure::views_alive(
            &self.name,
            format!("a slot of segment {} is on loan", self.name),
            "leave the with block of the loan first",
        )
    }

    fn inherited(&self) -> Failure {
        Failure::Own {
            code: "closed",
            segment: self.name.clone(),
            message: format!(
                "the writer of segment {} belongs to the process that forked this one",
                self.name
            ),
            remedy: "write in the parent, or create a segment in the child (or start children by spawn)",
        }
    }

    /// The refusal of a value that no slot can hold.
    pub(crate) fn too_long(&self, len: usize) -> ShmError {
        ShmError::OutOfBounds {
            name: self.name.clone(),
            offset: 0,
            len,
            capacity: self.capacity,
        }
    }
}
