//! The crate seqlock. It is meant for the threads of one process; here its lock is laid into shared memory, which works
//! for one writer, so that it meets the others under the same conditions.

use std::marker::PhantomData;

use seqlock::SeqLock;
use shared_memory::Shmem;
use snakepit_shm_bench::Result;

use crate::object;
use crate::port::{Place, Put, Reader, Take, Writer};
use crate::sized::{Plain, by_small_type};

/// The lock before the value and the end of the object: its fields, in whatever order.
const SLACK: usize = 4096;

struct Mapped<T: Plain> {
    object: Shmem,
    value: PhantomData<T>,
}

impl<T: Plain> Mapped<T> {
    #[inline]
    fn lock(&self) -> &SeqLock<T> {
        // SAFETY: the mapping lives as long as `self`, starts on a page and holds a lock and its value, see `opened`; zeros
        // are an unlocked lock with a value of zeros.
        unsafe { &*self.object.as_ptr().cast::<SeqLock<T>>() }
    }
}

fn opened<T: Plain>(object: Shmem) -> Result<Mapped<T>> {
    if size_of::<SeqLock<T>>() > object.len() {
        return Err("the object is too small for the lock".into());
    }
    Ok(Mapped {
        object,
        value: PhantomData,
    })
}

struct Sender<T: Plain>(Mapped<T>);

impl<T: Plain> Put for Sender<T> {
    #[inline]
    fn put(&mut self, value: &[u8]) -> Result<()> {
        let mut guard = self.0.lock().lock_write();
        // SAFETY: the guard's own value, locked against other writers.
        unsafe { T::fill(&raw mut *guard, value) };
        Ok(())
    }
}

struct Receiver<T: Plain>(Mapped<T>);

impl<T: Plain> Take for Receiver<T> {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let value = self.0.lock().read();
        Ok(Some(then(value.bytes())))
    }
}

pub fn writer(place: &Place) -> Result<Box<dyn Writer>> {
    const { assert!(object::DATA >= SLACK) };
    let object = object::create(place)?;
    by_small_type!(place.size, T => Ok(Box::new(Sender::<T>(opened(object)?)) as Box<dyn Writer>))
}

pub fn reader(place: &Place) -> Result<Box<dyn Reader>> {
    let object = object::open(place)?;
    by_small_type!(place.size, T => Ok(Box::new(Receiver::<T>(opened(object)?)) as Box<dyn Reader>))
}
