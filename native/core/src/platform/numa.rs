//! NUMA: which nodes there are, and where pages come from (numa(7)).

use super::pages::Range;
use std::io;

const MPOL_BIND: libc::c_int = 2;
const MPOL_INTERLEAVE: libc::c_int = 3;
const MPOL_F_ADDR: libc::c_ulong = 1 << 1;
const MPOL_F_MEMS_ALLOWED: libc::c_ulong = 1 << 2;

const WORDS: usize = 16;
/// Nodes that a mask has room for.
pub(crate) const MOST_NODES: usize = WORDS * 64;

/// How pages are spread over nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spread {
    /// On these nodes and no others.
    Bind,
    /// In turns.
    Interleave,
}

impl Spread {
    fn mode(self) -> libc::c_int {
        match self {
            Self::Bind => MPOL_BIND,
            Self::Interleave => MPOL_INTERLEAVE,
        }
    }
}

/// A set of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Nodes([u64; WORDS]);

impl Nodes {
    /// `Err` with the number that no node can have.
    pub(crate) fn of(numbers: &[u32]) -> Result<Self, u32> {
        let mut nodes = Self::default();
        for number in numbers {
            let word = nodes.0.get_mut(*number as usize / 64).ok_or(*number)?;
            *word |= 1 << (number % 64);
        }
        Ok(nodes)
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        (0..MOST_NODES as u32).filter(|n| self.has(*n)).collect()
    }

    pub(crate) fn has(&self, number: u32) -> bool {
        let word = self.0.get(number as usize / 64).copied().unwrap_or(0);
        word >> (number % 64) & 1 == 1
    }
}

fn get_mempolicy(address: usize, flags: libc::c_ulong) -> io::Result<(libc::c_int, Nodes)> {
    let mut mode: libc::c_int = 0;
    let mut nodes = Nodes::default();
    // SAFETY: the kernel writes one mode and at most `MOST_NODES` bits, and only looks at the address.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            nodes.0.as_mut_ptr(),
            MOST_NODES as libc::c_ulong,
            address,
            flags,
        )
    };
    match result {
        0 => Ok((mode, nodes)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The nodes that this process may take memory of.
pub(crate) fn allowed_nodes() -> io::Result<Nodes> {
    Ok(get_mempolicy(0, MPOL_F_MEMS_ALLOWED)?.1)
}

/// Has pages of a range, which must not be there yet, come from `nodes` (mbind(2)), for every process that
/// maps the file; then asks whether that is so.
pub(crate) fn spread(range: Range, spread: Spread, nodes: &Nodes) -> io::Result<()> {
    // SAFETY: the kernel reads `MOST_NODES` bits of the mask and checks the address range.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            range.start,
            range.len,
            spread.mode(),
            nodes.0.as_ptr(),
            // One more: the kernel takes one away.
            MOST_NODES as libc::c_ulong + 1,
            0,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    for at in [range.start, range.end() - super::page_size()] {
        let (mode, kept) = get_mempolicy(at, MPOL_F_ADDR)?;
        if (mode, &kept) != (spread.mode(), nodes) {
            return Err(io::Error::other(format!(
                "the system took it and has policy {mode} of nodes {:?}",
                kept.numbers()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_nodes_has_what_it_was_made_of() {
        let nodes = Nodes::of(&[0, 63, 64, 1023]).unwrap();
        assert_eq!(nodes.numbers(), [0, 63, 64, 1023]);
        assert!(nodes.has(64) && !nodes.has(65) && !nodes.has(5000));
        assert_eq!(Nodes::of(&[1024]), Err(1024));
    }
}
