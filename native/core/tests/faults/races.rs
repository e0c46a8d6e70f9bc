//! Many processes, one name.

use crate::*;

/// One of many that create, attach and clean up one name at once.
pub fn crowd(dir: &Path) {
    say("ready");
    let rounds: u32 = hear().parse().unwrap();
    let _member = join("test", dir).unwrap();
    let clean = CleanupOptions::new("test", dir).grace(Duration::ZERO);
    for round in 0..rounds {
        match options(dir, "one").create() {
            Ok(mut writer) => {
                writer.write(b"whole").unwrap();
                match round % 3 {
                    0 => writer.close().unwrap(),
                    1 => writer.release().unwrap(),
                    _ => drop(writer),
                }
            }
            Err(ShmError::AlreadyExists { .. }) => {}
            Err(other) => panic!("create: {other}"),
        }
        match options(dir, "one").attach_reader() {
            Ok(mut reader) => {
                match reader.read() {
                    Ok(value) => assert_eq!(value, b"whole"),
                    Err(ShmError::Empty { .. }) => {}
                    Err(other) => panic!("read: {other}"),
                }
                reader.close().unwrap();
            }
            Err(ShmError::NotFound { .. }) => {}
            Err(other) => panic!("attach: {other}"),
        }
        match options(dir, "one").attach_writer() {
            Ok(mut writer) => {
                writer.write(b"whole").unwrap();
                writer.close().unwrap();
            }
            Err(
                ShmError::NotFound { .. } | ShmError::SegmentBusy { .. } | ShmError::Closed { .. },
            ) => {}
            Err(other) => panic!("take over: {other}"),
        }
        let report = clean.run().unwrap();
        assert!(report.corrupted.is_empty(), "{report:?}");
    }
    say("done");
    hear();
}

#[test]
fn twenty_processes_create_attach_and_clean_one_name() {
    let shm = Shm::new();
    let mut peers: Vec<_> = (0..20).map(|_| Peer::start(ENTRY, "crowd", &shm)).collect();
    peers.iter_mut().for_each(|peer| drop(peer.expect("ready")));
    let rounds = full(50, 1000).to_string();
    peers.iter_mut().for_each(|peer| peer.tell(&rounds));
    peers.iter_mut().for_each(|peer| drop(peer.expect("done")));
    peers.into_iter().for_each(Peer::finish);
    let report = CleanupOptions::new("test", shm.path())
        .grace(Duration::ZERO)
        .run()
        .unwrap();
    assert!(report.kept.is_empty(), "{report:?}");
}
