//! The crates shared_memory and raw_sync: plain memory behind a lock of the C library that processes share.

use raw_sync::locks::{LockImpl, LockInit, Mutex, RwLock};
use shared_memory::Shmem;
use snakepit_shm_bench::Result;
use snakepit_shm_bench::buffer::Buffer;

use crate::object::{self, DATA};
use crate::port::{Kind, Place, Put, Reader, Take, Writer};

// Fields are dropped in order: the lock before the memory it is in.
struct Locked {
    lock: Box<dyn LockImpl>,
    size: usize,
    _object: Shmem,
}

fn opened(object: Shmem, place: &Place, new: bool) -> Result<Locked> {
    if object.len() < DATA + place.size {
        return Err("the object is too small".into());
    }
    let base = object.as_ptr();
    // SAFETY: inside the mapping, by the check above.
    let data = unsafe { base.add(DATA) };
    // SAFETY: the first page of the mapping is the lock's alone and longer than it; whoever creates it calls `new`
    // before anybody opens it.
    let lock = unsafe {
        match (place.kind, new) {
            (Kind::Mutex, true) => Mutex::new(base, data),
            (Kind::Mutex, false) => Mutex::from_existing(base, data),
            (_, true) => RwLock::new(base, data),
            (_, false) => RwLock::from_existing(base, data),
        }
    };
    let (lock, _) = lock.map_err(|e| format!("raw_sync: {e}"))?;
    Ok(Locked {
        lock,
        size: place.size,
        _object: object,
    })
}

struct Sender(Locked);

impl Put for Sender {
    #[inline]
    fn put(&mut self, value: &[u8]) -> Result<()> {
        assert!(value.len() <= self.0.size);
        let guard = self.0.lock.lock().map_err(|e| format!("raw_sync: {e}"))?;
        // SAFETY: the data is as long as the assertion says, and locked.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), *guard, value.len()) };
        Ok(())
    }
}

struct Receiver {
    locked: Locked,
    buffer: Buffer,
}

impl Take for Receiver {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let guard = self
            .locked
            .lock
            .rlock()
            .map_err(|e| format!("raw_sync: {e}"))?;
        // SAFETY: the data is as long as the buffer, and locked against writers.
        let value = unsafe { std::slice::from_raw_parts(*guard, self.buffer.len()) };
        self.buffer.copy_from_slice(value);
        drop(guard);
        Ok(Some(then(&self.buffer)))
    }
}

pub fn writer(place: &Place) -> Result<Box<dyn Writer>> {
    Ok(Box::new(Sender(opened(
        object::create(place)?,
        place,
        true,
    )?)))
}

pub fn reader(place: &Place) -> Result<Box<dyn Reader>> {
    let buffer = Buffer::new(place.size);
    let locked = opened(object::open(place)?, place, false)?;
    Ok(Box::new(Receiver { locked, buffer }))
}
