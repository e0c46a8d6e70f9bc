//! Any sequence of writes, patches, loans and reads gives what a naive twin gives: a vector.

mod support;

use proptest::prelude::*;
use snakepit_shm::{Descriptor, Integrity, Pinned};
use std::collections::BTreeSet;
use support::Shm;

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<u8>),
    Vectored(Vec<Vec<u8>>),
    Patch(usize, Vec<u8>),
    Loan(Vec<u8>),
    Abandon(u8),
    Read,
    Range(usize, usize),
    /// One of three readers pins the current value, or gives back what it has pinned.
    Pin(usize),
    Unpin(usize),
    Reopen,
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), 0..most).prop_map(|(seed, len)| {
        (0..len)
            .map(|i| seed.wrapping_add(i as u8).wrapping_mul(31))
            .collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => bytes(5000).prop_map(Step::Write),
        1 => prop::collection::vec(bytes(2000), 0..4).prop_map(Step::Vectored),
        6 => (0usize..5000, bytes(300)).prop_map(|(at, data)| Step::Patch(at, data)),
        2 => bytes(5000).prop_map(Step::Loan),
        1 => any::<u8>().prop_map(Step::Abandon),
        4 => Just(Step::Read),
        2 => (0usize..5000, 0usize..5000).prop_map(|(at, len)| Step::Range(at, len)),
        3 => (0usize..3).prop_map(Step::Pin),
        2 => (0usize..3).prop_map(Step::Unpin),
        1 => Just(Step::Reopen),
    ]
}

const CAPACITY: usize = 4096;

fn run(slots: usize, crc: bool, steps: Vec<Step>) {
    let shm = Shm::new();
    let integrity = if crc {
        Integrity::Crc32c
    } else {
        Integrity::None
    };
    let options = shm
        .options("twin")
        .slots(slots)
        .size(CAPACITY)
        .integrity(integrity);
    let mut writer = Some(options.create().unwrap());
    let mut reader = options.attach_reader().unwrap();
    let pinners = [(); 3].map(|()| options.attach_reader().unwrap());
    // What each has pinned, with what it was and is to stay.
    let mut pins: [Vec<(Pinned, Vec<u8>)>; 3] = Default::default();
    let mut model: Option<Vec<u8>> = None;
    let mut version = 0;
    for step in steps {
        for (pinned, value) in pins.iter().flatten() {
            assert_eq!(&pinned[..], value);
            assert!(pinned.is_intact());
        }
        let in_place = pins.iter().flatten().filter(|(pin, _)| pin.in_place());
        let versions: BTreeSet<u64> = in_place.map(|(pin, _)| pin.version()).collect();
        assert!(versions.len() <= slots.saturating_sub(2), "too many pinned");
        let w = writer.as_mut().unwrap();
        let (result, expected) = match &step {
            Step::Write(data) => {
                let fits = (1..=CAPACITY).contains(&data.len());
                (w.write(data), fits.then(|| data.clone()))
            }
            Step::Vectored(parts) => {
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                let data = parts.concat();
                let fits = (1..=CAPACITY).contains(&data.len());
                (
                    w.write_vectored(&parts, &Descriptor::RAW),
                    fits.then_some(data),
                )
            }
            Step::Patch(at, data) => {
                let fits = !data.is_empty() && at + data.len() <= CAPACITY;
                let expected = fits.then(|| {
                    let mut value = model.clone().unwrap_or_default();
                    value.resize(value.len().max(at + data.len()), 0);
                    value[*at..at + data.len()].copy_from_slice(data);
                    value
                });
                (w.write_at(*at, data), expected)
            }
            Step::Loan(data) => {
                let possible = slots > 1 || model.is_none();
                let fits = possible && (1..=CAPACITY).contains(&data.len());
                let result = w.loan().and_then(|mut loan| {
                    let n = data.len().min(CAPACITY);
                    loan.as_mut_slice()[..n].copy_from_slice(&data[..n]);
                    loan.publish(data.len(), &Descriptor::RAW)
                });
                (result, fits.then(|| data.clone()))
            }
            Step::Abandon(byte) => {
                if let Ok(mut loan) = w.loan() {
                    loan.as_mut_slice().fill(*byte);
                }
                continue;
            }
            Step::Reopen => {
                writer.take().unwrap().release().unwrap();
                writer = Some(options.attach_writer().unwrap());
                continue;
            }
            Step::Read => {
                match (&model, reader.read()) {
                    (Some(value), read) => assert_eq!(read.unwrap(), value),
                    (None, read) => assert_eq!(read.unwrap_err().code(), "empty"),
                }
                continue;
            }
            Step::Pin(who) => {
                match (&model, pinners[*who].pin()) {
                    (Some(value), pinned) => {
                        let pinned = pinned.unwrap();
                        let room = slots > 2
                            && (versions.len() < slots - 2 || versions.contains(&version));
                        let free = pins[*who].iter().all(|(pin, _)| !pin.in_place());
                        let same = pins[*who]
                            .iter()
                            .any(|(pin, _)| pin.in_place() && pin.version() == version);
                        assert_eq!(pinned.in_place(), room && (free || same));
                        pins[*who].push((pinned, value.clone()));
                    }
                    (None, pinned) => assert_eq!(pinned.unwrap_err().code(), "empty"),
                }
                continue;
            }
            Step::Unpin(who) => {
                if let Some((pinned, _)) = pins[*who].pop() {
                    pinned.release().unwrap();
                }
                continue;
            }
            Step::Range(at, len) => {
                let part = model.as_ref().and_then(|v| v.get(*at..at + len));
                match (part, reader.read_range(*at, *len)) {
                    (Some(part), read) => assert_eq!(read.unwrap(), part),
                    (None, read) => {
                        assert!(["empty", "out_of_bounds"].contains(&read.unwrap_err().code()));
                    }
                }
                continue;
            }
        };
        match expected {
            Some(value) => {
                version += 2;
                assert_eq!(result.unwrap(), version, "{step:?}");
                model = Some(value);
            }
            None => {
                let code = result.unwrap_err().code();
                assert!(["out_of_bounds", "unsupported"].contains(&code), "{code}");
            }
        }
        assert_eq!(reader.version(), version);
    }
    drop(pins);
    for reader in pinners.into_iter().chain([reader]) {
        reader.close().unwrap();
    }
    writer.unwrap().close().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_vector(
        slots in 1usize..=6,
        crc: bool,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(slots, crc, steps);
    }
}

/// The patch that carries over many small ranges, for many slots: the ranges remembered overflow.
#[test]
fn many_scattered_patches() {
    let steps = (0..500usize)
        .map(|i| Step::Patch(i * 797 % 4000, vec![i as u8; 1 + i % 90]))
        .flat_map(|patch| [patch, Step::Read])
        .collect();
    run(5, false, steps);
}
