//! Work on files: create, attach, remove, look. Dirty, all of it.

use rustler::{Atom, ResourceArc};
use snakepit_shm::ShmError;

use crate::error::Answer;
use crate::listing::making_room;
use crate::resources::{ReaderResource, WriterResource};
use crate::terms::options::Segment;
use crate::terms::report::{PagesTerm, Report};

#[rustler::nif(schedule = "DirtyIo")]
fn create(segment: Segment) -> Answer<ResourceArc<WriterResource>> {
    let pool = segment.pool()?;
    let options = segment.options();
    let writer = making_room(|| match &pool {
        Some(pool) => pool.create(&options),
        None => options.create(),
    })?;
    Ok(WriterResource::pooled(writer, pool))
}

#[rustler::nif(schedule = "DirtyIo")]
fn attach(segment: Segment) -> Answer<ResourceArc<ReaderResource>> {
    let options = segment.options();
    let reader = making_room(|| options.attach_reader())?;
    Ok(ReaderResource::new(reader))
}

/// The same for the segment that `writer` writes, counted with it.
#[rustler::nif(schedule = "DirtyIo")]
fn attach_beside(segment: Segment, writer: &WriterResource) -> Answer<ResourceArc<ReaderResource>> {
    let options = segment.options();
    let reader = making_room(|| options.attach_reader())?;
    Ok(ReaderResource::beside(reader, writer))
}

/// Takes the place of a writer that has gone.
#[rustler::nif(schedule = "DirtyIo")]
fn attach_writer(segment: Segment) -> Answer<ResourceArc<WriterResource>> {
    let options = segment.options();
    let writer = making_room(|| options.attach_writer())?;
    Ok(WriterResource::new(writer))
}

/// Takes over a segment that nobody writes any more, sealed or not, if it has the size and the slots that
/// the caller has seen: another may have its name by now. In the end its memory goes to the VM's pool, if it is
/// to.
#[rustler::nif(schedule = "DirtyIo")]
fn adopt(segment: Segment) -> Answer<ResourceArc<WriterResource>> {
    let name = segment.name.clone();
    let seen = (segment.size, segment.slots);
    let pool = segment.pool()?;
    let incarnation = segment.incarnation.clone();
    let options = segment.options();
    let writer = making_room(|| match &incarnation {
        Some(incarnation) => options.adopt_incarnation(incarnation),
        None => options.adopt(),
    })?;
    if seen == (Some(writer.capacity() as u64), Some(writer.slots() as u64)) {
        return Ok(WriterResource::pooled(writer, pool));
    }
    writer.release()?;
    Err(ShmError::NotFound { name }.into())
}

/// Removes a segment by name, whoever wrote it.
#[rustler::nif(schedule = "DirtyIo")]
fn remove(segment: Segment) -> Answer<Atom> {
    segment.options().remove()?;
    Ok(rustler::types::atom::ok())
}

#[rustler::nif(schedule = "DirtyIo")]
fn inspect_segment(segment: Segment) -> Answer<Report> {
    Ok(Report::of(&segment.options().inspect()?))
}

/// How the memory under a segment is backed. Maps all of it for a moment.
#[rustler::nif(schedule = "DirtyIo")]
fn inspect_pages(segment: Segment) -> Answer<PagesTerm> {
    let options = segment.options();
    let pages = making_room(|| options.inspect_pages())?;
    Ok(PagesTerm::of(&pages))
}

/// What tells whether a segment is in use: its version, and how many readers of other OS processes
/// that live are attached; a writer there, who fills what it was lent, is one more. Looks without attaching.
#[rustler::nif(schedule = "DirtyIo")]
fn usage(segment: Segment) -> Answer<(u64, u64)> {
    let report = segment.options().inspect()?;
    let others = report
        .readers
        .iter()
        .filter(|reader| !reader.own && reader.alive != Some(false));
    let writer = report.writer.is_some() && !report.writer_is_own;
    let filled = writer && report.writer_alive != Some(false);
    Ok((report.version, others.count() as u64 + u64::from(filled)))
}

/// The smallest capacity that holds so many bytes.
#[rustler::nif]
fn round_up_capacity(bytes: u64) -> Answer<u64> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    Ok(snakepit_shm::round_up_capacity(bytes)? as u64)
}
