//! What the machine can do in a directory.

use rustler::NifMap;

use crate::error::Answer;

/// As the core found it. Sizes are bytes.
#[derive(NifMap)]
struct Capabilities {
    page_size: u64,
    space_total: u64,
    space_available: u64,
    huge_pages: Option<String>,
    huge_page_size: u64,
    shmem_enabled: Option<String>,
    huge_pages_possible: bool,
    unnamed_files: bool,
    file_locks: bool,
    process_descriptors: bool,
}

/// Tries each; leaves nothing in the directory.
#[rustler::nif(schedule = "DirtyIo")]
fn capabilities(dir: String) -> Answer<Capabilities> {
    let found = snakepit_shm::capabilities(dir)?;
    Ok(Capabilities {
        page_size: found.page_size as u64,
        space_total: found.space_total,
        space_available: found.space_available,
        huge_pages: found.huge_pages,
        huge_page_size: found.huge_page_size as u64,
        shmem_enabled: found.shmem_enabled,
        huge_pages_possible: found.huge_pages_possible,
        unnamed_files: found.unnamed_files,
        file_locks: found.file_locks,
        process_descriptors: found.process_descriptors,
    })
}
