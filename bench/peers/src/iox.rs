//! iceoryx2: its blackboard and its publish-subscribe, by its typed Rust API and `ipc::Service`.
//!
//! The files of its registry lie in this run's own directory; its shared memory objects are named for this run.

use iceoryx2::node::Node;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::reader::{EntryHandle, Reader as BlackboardReader};
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::port::writer::{EntryHandleMut, Writer as BlackboardWriter};
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::blackboard::PortFactory as Blackboard;
use iceoryx2::service::port_factory::publish_subscribe::PortFactory as PubSub;
use snakepit_shm_bench::Result;
use snakepit_shm_bench::buffer::Buffer;

use crate::port::{Kind, Place, Put, Reader, Take, Writer};
use crate::sized::{Block, Plain, Word, by_type};
use crate::stamped;

type Service = ipc::Service;

// SAFETY: plain bytes, no pointers, the same layout in every process.
unsafe impl<const WORDS: usize> ZeroCopySend for Block<WORDS> {}
// SAFETY: an integer.
unsafe impl ZeroCopySend for Word {}

/// A message with its cause: the errors of iceoryx2 are not all `Send`.
fn said(error: impl std::fmt::Debug) -> String {
    format!("iceoryx2: {error:?}")
}

/// A node of this run.
///
/// # Errors
/// What iceoryx2 says.
pub fn node(dir: &std::path::Path) -> Result<Node<Service>> {
    set_log_level(LogLevel::Fatal);
    let mut config = Config::default();
    let root = dir.join("iox");
    let root = Path::new(root.to_string_lossy().as_bytes()).map_err(said)?;
    config.global.set_root_path(&root);
    config.global.prefix = FileName::new(prefix(dir).as_bytes()).map_err(said)?;
    let builder = NodeBuilder::new()
        .config(&config)
        .signal_handling_mode(SignalHandlingMode::Disabled);
    builder.create::<Service>().map_err(|e| said(e).into())
}

/// What the names of its shared memory objects begin with.
fn prefix(dir: &std::path::Path) -> String {
    format!("{}-iox2_", crate::object_prefix(dir))
}

fn name(place: &Place) -> Result<ServiceName> {
    let text = format!("{}/{}", place.kind.word(), place.name);
    text.as_str().try_into().map_err(|e| said(e).into())
}

// Fields are dropped in order: the handle first, the node last.
struct Board<T: Plain> {
    handle: Option<EntryHandleMut<Service, u64, T>>,
    _writer: BlackboardWriter<Service, u64>,
    _service: Blackboard<Service, u64>,
    _node: Node<Service>,
}

impl<T: Plain> Put for Board<T> {
    #[inline]
    fn put(&mut self, value: &[u8]) -> Result<()> {
        let handle = self.handle.take().ok_or("the entry is gone")?;
        let mut loan = handle.loan_uninit();
        // SAFETY: the loan is ours alone until it is published.
        unsafe { T::fill(loan.value_mut().as_mut_ptr(), value) };
        // SAFETY: all of it was just written.
        self.handle = Some(unsafe { loan.assume_init_and_update() });
        Ok(())
    }
}

struct BoardReader<T: Plain> {
    handle: EntryHandle<Service, u64, T>,
    _reader: BlackboardReader<Service, u64>,
    _service: Blackboard<Service, u64>,
    _node: Node<Service>,
}

impl<T: Plain> Take for BoardReader<T> {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let value = self.handle.get();
        Ok(Some(then(value.bytes())))
    }
}

pub fn blackboard_writer(place: &Place) -> Result<Box<dyn Writer>> {
    by_type!(place.size, T => board::<T>(place))
}

fn board<T: Plain + ZeroCopySend + std::fmt::Debug>(place: &Place) -> Result<Box<dyn Writer>> {
    let node = node(&place.dir)?;
    // SAFETY: plain bytes; zeros are a value.
    let zero: T = unsafe { std::mem::zeroed() };
    let service = node
        .service_builder(&name(place)?)
        .blackboard_creator::<u64>()
        .max_readers(place.readers.max(1))
        .max_nodes(place.readers + 2)
        .add::<T>(0, zero)
        .create()
        .map_err(said)?;
    let writer = service.writer_builder().create().map_err(said)?;
    let handle = writer.entry::<T>(&0).map_err(said)?;
    Ok(Box::new(Board {
        handle: Some(handle),
        _writer: writer,
        _service: service,
        _node: node,
    }))
}

pub fn blackboard_reader(place: &Place) -> Result<Box<dyn Reader>> {
    by_type!(place.size, T => board_reader::<T>(place))
}

fn board_reader<T: Plain + ZeroCopySend + std::fmt::Debug>(
    place: &Place,
) -> Result<Box<dyn Reader>> {
    let node = node(&place.dir)?;
    let service = node
        .service_builder(&name(place)?)
        .blackboard_opener::<u64>()
        .open()
        .map_err(said)?;
    let reader = service.reader_builder().create().map_err(said)?;
    let handle = reader.entry::<T>(&0).map_err(said)?;
    Ok(Box::new(BoardReader {
        handle,
        _reader: reader,
        _service: service,
        _node: node,
    }))
}

fn pub_sub(node: &Node<Service>, place: &Place) -> Result<PubSub<Service, [u8], ()>> {
    let alignment = Alignment::new(64).ok_or("64 is an alignment")?;
    // A state, not a stream: the newest value for each subscriber, older ones overwritten.
    node.service_builder(&name(place)?)
        .publish_subscribe::<[u8]>()
        .payload_alignment(alignment)
        .max_publishers(1)
        .max_subscribers(place.readers.max(1))
        .max_nodes(place.readers + 2)
        .subscriber_max_buffer_size(1)
        .subscriber_max_borrowed_samples(1)
        .history_size(0)
        .enable_safe_overflow(true)
        .open_or_create()
        .map_err(|e| said(e).into())
}

struct Sender<const IN_PLACE: bool> {
    publisher: Publisher<Service, [u8], ()>,
    _service: PubSub<Service, [u8], ()>,
    _node: Node<Service>,
}

impl<const IN_PLACE: bool> Put for Sender<IN_PLACE> {
    #[inline]
    fn put(&mut self, value: &[u8]) -> Result<()> {
        let mut loan = self
            .publisher
            .loan_slice_uninit(value.len())
            .map_err(said)?;
        let sample = if IN_PLACE {
            let payload = loan.payload_mut();
            // SAFETY: the bytes of a shared mapping are initialised, whatever their type says; the loan is ours.
            let payload: &mut [u8] = unsafe {
                std::slice::from_raw_parts_mut(payload.as_mut_ptr().cast(), payload.len())
            };
            stamped::stamp(payload, stamped::ends(value).0);
            // SAFETY: as above.
            unsafe { loan.assume_init() }
        } else {
            loan.write_from_slice(value)
        };
        sample.send().map_err(said)?;
        Ok(())
    }
}

struct Receiver<const IN_PLACE: bool> {
    subscriber: Subscriber<Service, [u8], ()>,
    buffer: Buffer,
    _service: PubSub<Service, [u8], ()>,
    _node: Node<Service>,
}

impl<const IN_PLACE: bool> Take for Receiver<IN_PLACE> {
    #[inline]
    fn take<R>(&mut self, then: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let Some(sample) = self.subscriber.receive().map_err(said)? else {
            return Ok(None);
        };
        if IN_PLACE {
            return Ok(Some(then(sample.payload())));
        }
        self.buffer.copy_from_slice(sample.payload());
        drop(sample);
        Ok(Some(then(&self.buffer)))
    }
}

pub fn publisher(place: &Place) -> Result<Box<dyn Writer>> {
    let node = node(&place.dir)?;
    let service = pub_sub(&node, place)?;
    let publisher = service
        .publisher_builder()
        .initial_max_slice_len(place.size)
        .max_loaned_samples(1)
        .create()
        .map_err(said)?;
    Ok(if place.kind == Kind::PubSubInPlace {
        Box::new(Sender::<true> {
            publisher,
            _service: service,
            _node: node,
        })
    } else {
        Box::new(Sender::<false> {
            publisher,
            _service: service,
            _node: node,
        })
    })
}

pub fn subscriber(place: &Place) -> Result<Box<dyn Reader>> {
    let node = node(&place.dir)?;
    let service = pub_sub(&node, place)?;
    let subscriber = service.subscriber_builder().create().map_err(said)?;
    Ok(if place.kind == Kind::PubSubInPlace {
        Box::new(Receiver::<true> {
            subscriber,
            buffer: Buffer::new(0),
            _service: service,
            _node: node,
        })
    } else {
        Box::new(Receiver::<false> {
            subscriber,
            buffer: Buffer::new(place.size),
            _service: service,
            _node: node,
        })
    })
}

/// Makes a blackboard of `keys` entries, and looks up the one of the given number as often as it is called.
///
/// # Errors
/// What iceoryx2 says.
pub fn keys(place: &Place, keys: u64) -> Result<impl FnMut(u64) -> Result<()>> {
    let node = node(&place.dir)?;
    let mut creator = node
        .service_builder(&name(place)?)
        .blackboard_creator::<u64>();
    for key in 0..keys {
        creator = creator.add::<u64>(key, key);
    }
    let service = creator.create().map_err(said)?;
    let reader = service.reader_builder().create().map_err(said)?;
    Ok(move |key| {
        let (_node, _service) = (&node, &service);
        let handle = reader.entry::<u64>(&key).map_err(said)?;
        std::hint::black_box(*handle.get());
        Ok(())
    })
}
