//! mmap-sync, with the path on a memory file system and values whose archived form is their bytes (`write_raw`), both
//! as its documentation advises for speed.

use std::ffi::OsString;
use std::time::Duration;

use mmap_sync::locks::LockDisabled;
use mmap_sync::synchronizer::Synchronizer;
use snakepit_shm_bench::Result;
use snakepit_shm_bench::buffer::Buffer;

use crate::port::{Kind, Place, Put, Reader, Take, Writer};
use crate::sized::by_len;

/// After this the writer takes a reader for dead.
const GRACE: Duration = Duration::from_secs(1);
/// How long a writer sleeps that finds a reader in its way: a nanosecond, as short as the kernel makes it. The
/// default, a second, would leave next to nothing to measure beside a busy reader.
const SLEEP_NS: u64 = 1;
/// Room for serialisation, its own default.
const SCRATCH: usize = 1024;
type Sync = Synchronizer<wyhash::WyHash, LockDisabled, SCRATCH, SLEEP_NS>;

fn path(place: &Place) -> OsString {
    place
        .dir
        .join(format!("{}-{}", place.kind.word(), place.name))
        .into_os_string()
}

struct Sender<const N: usize>(Sync);

impl<const N: usize> Put for Sender<N> {
    #[inline]
    fn put(&mut self, value: &[u8]) -> Result<()> {
        self.0.write_raw::<[u8; N]>(value, GRACE)?;
        Ok(())
    }
}

struct Receiver<const N: usize, const IN_PLACE: bool> {
    sync: Sync,
    buffer: Buffer,
}

impl<const N: usize, const IN_PLACE: bool> Take for Receiver<N, IN_PLACE> {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        // SAFETY: what it asks for, that the guard is dropped within the grace, holds unless the machine stalls for a
        // second; plain bytes are then merely torn, which is looked for.
        let guard = unsafe { self.sync.read::<[u8; N]>(false) }?;
        if IN_PLACE {
            return Ok(Some(then(&guard[..])));
        }
        self.buffer.copy_from_slice(&guard[..]);
        drop(guard);
        Ok(Some(then(&self.buffer)))
    }
}

pub fn writer(place: &Place) -> Result<Box<dyn Writer>> {
    let sync = Sync::with_params(&path(place));
    by_len!(place.size, N => Ok(Box::new(Sender::<N>(sync)) as Box<dyn Writer>))
}

pub fn reader(place: &Place) -> Result<Box<dyn Reader>> {
    let sync = Sync::with_params(&path(place));
    if place.kind == Kind::MmapSyncInPlace {
        let buffer = Buffer::new(0);
        return by_len!(place.size, N => Ok(Box::new(Receiver::<N, true> { sync, buffer }) as Box<dyn Reader>));
    }
    let buffer = Buffer::new(place.size);
    by_len!(place.size, N => Ok(Box::new(Receiver::<N, false> { sync, buffer }) as Box<dyn Reader>))
}
