//! Hostile names, sizes, offsets and files: a named error, nothing created, nothing lost.

mod support;

use snakepit_shm::{
    Descriptor, Handle, Integrity, SegmentDiscovery, SegmentOptions, ShmError, attach_reader,
    create_segment,
};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use support::Shm;

#[test]
fn invalid_names_touch_no_file() {
    let shm = Shm::new();
    for name in ["", ".hidden", "a/b", "../x", "a b", "ä", &"n".repeat(129)] {
        for code in [
            shm.options(name).create().unwrap_err().code(),
            shm.options(name).attach_reader().unwrap_err().code(),
            shm.options(name).attach_writer().unwrap_err().code(),
            shm.options(name).remove().unwrap_err().code(),
            shm.options(name).inspect().unwrap_err().code(),
        ] {
            assert_eq!(code, "invalid_name", "{name:?}");
        }
        assert!(shm.files().is_empty());
    }
    assert_eq!(
        create_segment("a/b", 4096).unwrap_err().code(),
        "invalid_name"
    );
    assert_eq!(attach_reader("a/b").unwrap_err().code(), "invalid_name");
}

#[test]
fn invalid_sizes_say_bounds_and_nearest() {
    let shm = Shm::new();
    for (size, nearest) in [
        (0, "4096"),
        (100, "4096"),
        (6144, "8192"),
        (usize::MAX, "1073741824"),
    ] {
        let text = shm
            .options("x")
            .size(size)
            .create()
            .unwrap_err()
            .to_string();
        assert!(
            text.contains(nearest) && text.contains("4096..=1073741824"),
            "{text}"
        );
    }
    assert!(shm.files().is_empty());
}

#[test]
fn offsets_that_overflow_are_out_of_bounds() {
    let shm = Shm::new();
    let options = shm.options("x");
    let mut writer = options.create().unwrap();
    writer.write(b"0123456789").unwrap();
    for (offset, len) in [
        (usize::MAX - 127, 128),
        (usize::MAX, 1),
        (4096, 1),
        (4000, 97),
        (0, 4097),
    ] {
        let error = writer.write_at(offset, &vec![1; len]).unwrap_err();
        assert_eq!(error.code(), "out_of_bounds", "{offset} {len}");
    }
    assert_eq!(writer.write_at(5, b"").unwrap_err().code(), "out_of_bounds");
    assert_eq!(writer.write(b"").unwrap_err().code(), "out_of_bounds");
    assert_eq!(
        writer.write(&[0; 4097]).unwrap_err().code(),
        "out_of_bounds"
    );
    let mut reader = options.attach_reader().unwrap();
    for (offset, len) in [(usize::MAX, 2), (1, usize::MAX), (10, 1), (0, 11)] {
        let error = reader.read_range(offset, len).unwrap_err();
        assert_eq!(error.code(), "out_of_bounds", "{offset} {len}");
    }
    assert_eq!(reader.read().unwrap(), b"0123456789");
    match reader.read_into(&mut [0; 4]) {
        Err(ShmError::OutOfBounds { len: 10, .. }) => {}
        other => panic!("{other:?}"),
    }
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn descriptor_must_fit_the_value() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    let three_floats = Descriptor::numpy("<f4", &[3]).unwrap();
    let error = writer.write_described(&[0; 11], &three_floats).unwrap_err();
    assert_eq!(error.code(), "invalid_option");
    assert_eq!(writer.current_version(), 0);
    writer.close().unwrap();
}

#[test]
fn a_taken_name_stays_with_its_owner() {
    let shm = Shm::new();
    let options = shm.options("x");
    let mut writer = options.create().unwrap();
    writer.write(b"mine").unwrap();
    assert_eq!(options.create().unwrap_err().code(), "already_exists");
    let other_module = options.clone().module("other");
    assert_eq!(other_module.create().unwrap_err().code(), "already_exists");
    assert_eq!(options.attach_reader().unwrap().read().unwrap(), b"mine");
    writer.close().unwrap();
}

#[test]
fn names_that_are_prefixes_are_different() {
    let shm = Shm::new();
    let mut short = shm.options("sensor").create().unwrap();
    let mut long = shm.options("sensor_data").create().unwrap();
    short.write(b"short").unwrap();
    long.write(b"long").unwrap();
    shm.options("sensor").remove().unwrap();
    assert_eq!(
        shm.options("sensor").attach_reader().unwrap_err().code(),
        "not_found"
    );
    assert_eq!(
        shm.options("sensor_data")
            .attach_reader()
            .unwrap()
            .read()
            .unwrap(),
        b"long"
    );
    drop(short);
    long.close().unwrap();
}

#[test]
fn garbage_presented_to_attach() {
    let shm = Shm::new();
    let options = shm.options("x");
    let meta = shm.path().join("test_x.meta");
    for garbage in [
        &b""[..],
        b"{}",
        b"not json",
        &[0xFF; 5000],
        &[b'['; 100_000],
    ] {
        std::fs::write(&meta, garbage).unwrap();
        assert_eq!(options.attach_reader().unwrap_err().code(), "corrupted");
        assert_eq!(options.inspect().unwrap_err().code(), "corrupted");
        assert!(
            SegmentDiscovery::new("test", shm.path())
                .unwrap()
                .list()
                .unwrap()
                .is_empty()
        );
    }
    std::fs::remove_file(&meta).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &meta).unwrap();
    assert_eq!(options.attach_reader().unwrap_err().code(), "corrupted");
    std::fs::remove_file(&meta).unwrap();
    std::fs::create_dir(&meta).unwrap();
    assert_eq!(options.attach_reader().unwrap_err().code(), "corrupted");
    std::fs::remove_dir(&meta).unwrap();
    // One that nobody writes to does not hold us up.
    nix::unistd::mkfifo(&meta, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(options.attach_reader().unwrap_err().code(), "corrupted");
    std::fs::remove_file(&meta).unwrap();
    shm.clear(); // the participants file: nobody was left to remove it when a .meta was there
}

/// What another program writes is not laid out like ours, and may be longer than what we read at once.
#[test]
fn metadata_of_16_kib_in_any_layout_is_read() {
    let shm = Shm::new();
    let mut writer = shm.options("x").create().unwrap();
    writer.write(b"value").unwrap();
    let meta = shm.path().join("test_x.meta");
    let ours = std::fs::read_to_string(&meta).unwrap();
    for blanks in [0, 700, 1024, 2048, 15_000] {
        std::fs::write(&meta, ours.replacen(' ', &" ".repeat(1 + blanks), 1)).unwrap();
        let mut reader = shm.options("x").attach_reader().unwrap();
        assert_eq!(reader.read().unwrap(), b"value");
        reader.close().unwrap();
    }
    std::fs::write(&meta, ours.replacen(' ', &" ".repeat(20_000), 1)).unwrap();
    let error = shm.options("x").attach_reader().unwrap_err();
    assert_eq!(error.code(), "corrupted");
    std::fs::write(&meta, ours).unwrap();
    writer.close().unwrap();
}

/// Every byte of the header page, set to several values: attach, read and inspect end in a value or a
/// named error.
#[test]
fn scribbled_headers_are_refused_or_harmless() {
    let shm = Shm::new();
    let options = shm.options("x").slots(2).integrity(Integrity::Crc32c);
    let mut writer = options.create().unwrap();
    writer.write(b"value").unwrap();
    let path = shm.segment_file("x");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let geometry_end = 64;
    let slot0 = 4096 + 20 * 1024; // header page, 1,024 readers
    for at in (0..256u64).chain(slot0..slot0 + 64) {
        let mut before = [0];
        file.read_exact_at(&mut before, at).unwrap();
        for value in [0, 1, 0x7F, 0xFF] {
            file.write_all_at(&[value], at).unwrap();
            let attached = options.attach_reader();
            if at < geometry_end && value != before[0] {
                assert_eq!(
                    attached.as_ref().unwrap_err().code(),
                    "corrupted",
                    "byte {at}"
                );
            }
            if let Ok(mut reader) = attached {
                match reader.read() {
                    Ok(bytes) => assert_eq!(bytes, b"value", "byte {at} = {value}"),
                    Err(error) => assert!(
                        ["corrupted", "empty", "version_conflict"].contains(&error.code()),
                        "byte {at} = {value}: {error}"
                    ),
                }
                let _ = reader.sealed();
                let _ = reader.wait_changed(2, Some(Duration::ZERO));
            }
            let _ = options.inspect();
            let _ = SegmentDiscovery::new("test", shm.path()).unwrap().list();
            file.write_all_at(&before, at).unwrap();
        }
    }
    // Scribbling over the reader table shut nobody out, and the writer goes on.
    writer.write(b"after").unwrap();
    assert_eq!(options.attach_reader().unwrap().read().unwrap(), b"after");
    writer.close().unwrap();
}

#[test]
fn truncated_files_are_refused() {
    let shm = Shm::new();
    let options = shm.options("x");
    let mut writer = options.create().unwrap();
    writer.write(b"value").unwrap();
    writer.release().unwrap();
    let path = shm.segment_file("x");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let whole = file.metadata().unwrap().len();
    for len in [whole - 1, whole / 2, 4096, 100, 63, 1, 0] {
        file.set_len(len).unwrap();
        assert_eq!(
            options.attach_reader().unwrap_err().code(),
            "truncated",
            "{len}"
        );
        assert_eq!(
            options.attach_writer().unwrap_err().code(),
            "truncated",
            "{len}"
        );
        assert_eq!(options.inspect().unwrap_err().code(), "truncated", "{len}");
    }
    // A broken segment can still be removed.
    options.remove().unwrap();
}

#[test]
fn a_missing_file_is_named() {
    let shm = Shm::new();
    let options = shm.options("x");
    let writer = options.create().unwrap();
    std::fs::remove_file(shm.segment_file("x")).unwrap();
    assert_eq!(options.attach_reader().unwrap_err().code(), "corrupted");
    options.remove().unwrap();
    drop(writer);
}

#[test]
fn crc_mismatch_never_returns_the_value() {
    let shm = Shm::new();
    let options = shm.options("x").integrity(Integrity::Crc32c);
    let mut writer = options.create().unwrap();
    writer.write(b"checked value").unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(shm.segment_file("x"))
        .unwrap();
    let data = options.inspect().unwrap();
    let slot_at = data.file_len - (data.slots.len() * data.stride) as u64; // slots end the file, whole pages
    let mut reader = options.attach_reader().unwrap();
    assert_eq!(reader.read().unwrap(), b"checked value");
    let slot_at = slot_at / 4096 * 4096;
    file.write_all_at(b"C", slot_at + 64).unwrap();
    assert_eq!(reader.read().unwrap_err().code(), "corrupted");
    assert_eq!(reader.read_range(2, 3).unwrap_err().code(), "corrupted");
    writer.write(b"good again").unwrap();
    assert_eq!(reader.read().unwrap(), b"good again");
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn schema_mismatch_is_refused() {
    let shm = Shm::new();
    let writer = shm.options("x").schema_id(7).create().unwrap();
    match shm.options("x").schema_id(8).attach_reader() {
        Err(ShmError::SchemaMismatch {
            expected: 8,
            found: 7,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    shm.options("x").schema_id(7).attach_reader().unwrap();
    shm.options("x").attach_reader().unwrap();
    writer.close().unwrap();
}

#[test]
fn stale_values_are_named_and_still_readable() {
    let shm = Shm::new();
    let options = shm
        .options("x")
        .timestamps(snakepit_shm::Timestamps::Precise);
    let mut writer = options.create().unwrap();
    writer.write(b"old").unwrap();
    let mut reader = options.attach_reader().unwrap();
    assert_eq!(
        reader.read_fresh(Duration::from_secs(3600)).unwrap(),
        b"old"
    );
    support::eventually("the value ages", || {
        reader.age().unwrap() > Duration::from_millis(2)
    });
    assert_eq!(
        reader
            .read_fresh(Duration::from_millis(1))
            .unwrap_err()
            .code(),
        "stale"
    );
    assert_eq!(reader.read().unwrap(), b"old");
    reader.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn a_full_reader_table_is_a_named_error() {
    let shm = Shm::new();
    let options = shm.options("x").max_readers(3);
    let writer = options.create().unwrap();
    let readers: Vec<_> = (0..3).map(|_| options.attach_reader().unwrap()).collect();
    assert_eq!(
        options.attach_reader().unwrap_err().code(),
        "resource_exhausted"
    );
    assert_eq!(writer.reader_count(), 3);
    drop(readers);
    assert_eq!(writer.reader_count(), 0);
    options.attach_reader().unwrap().close().unwrap();
    writer.close().unwrap();
}

#[test]
fn files_of_others_are_left_alone() {
    let shm = Shm::new();
    let notes = shm.path().join("test_notes.txt");
    std::fs::write(&notes, b"mine").unwrap();
    let writer = shm.options("notes").create().unwrap();
    assert_eq!(
        SegmentDiscovery::new("test", shm.path())
            .unwrap()
            .list()
            .unwrap()
            .len(),
        1
    );
    writer.close().unwrap();
    assert_eq!(std::fs::read(&notes).unwrap(), b"mine");
    std::fs::remove_file(notes).unwrap();
}

#[test]
fn a_handle_to_an_earlier_region_is_refused() {
    let shm = Shm::new();
    let sealed = |text: &[u8]| {
        let mut writer = shm.options("x").slots(1).create().unwrap();
        writer.write(text).unwrap();
        writer.seal().unwrap();
        writer
    };
    let first = sealed(b"first");
    let handle = first.handle().unwrap();
    first.close().unwrap();
    let second = sealed(b"again");
    assert_eq!(handle.open(shm.path()).unwrap_err().code(), "not_found");
    assert_eq!(handle.remove(shm.path()).unwrap_err().code(), "not_found");
    let lied = Handle {
        bytes: 4,
        shape: vec![4],
        ..second.handle().unwrap()
    };
    assert_eq!(lied.open(shm.path()).unwrap_err().code(), "invalid_handle");
    second.close().unwrap();
}

#[test]
fn directory_problems_are_named() {
    let missing = SegmentOptions::new("x").dir("/nonexistent/dir");
    assert_eq!(missing.create().unwrap_err().code(), "io");
    assert_eq!(missing.attach_reader().unwrap_err().code(), "not_found");
    assert_eq!(
        SegmentDiscovery::new("a", "/nonexistent")
            .unwrap()
            .list()
            .unwrap_err()
            .code(),
        "io"
    );
    let read_only = SegmentOptions::new("x").dir("/sys");
    assert!(["permission_denied", "io"].contains(&read_only.create().unwrap_err().code()));
}

/// What a file system without O_TMPFILE gets is the same, and nothing temporary stays.
#[test]
fn refused_machine_features_are_named() {
    let shm = Shm::new();
    let error = shm.options("x").numa_node(Some(999)).create().unwrap_err();
    assert_eq!(error.code(), "invalid_option");
    let error = shm
        .options("x")
        .numa_node(Some(100_000))
        .create()
        .unwrap_err();
    assert_eq!(error.code(), "invalid_option");
    match shm.options("x").huge_pages(true).create() {
        Ok(writer) => writer.close().unwrap(),
        Err(error) => assert_eq!(error.code(), "invalid_option"),
    }
    assert!(shm.files().is_empty());
}
