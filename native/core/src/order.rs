//! Arrays in the order that everybody takes for granted.

/// Copies an array whose first index runs fastest (Fortran's order) so that the last one does (C's); `item` are the bytes
/// of an element. `None` when shape and item do not make as many bytes as there are in either.
///
/// ```
/// let mut rows = [0; 6];
/// snakepit_shm::in_c_order(&[0, 3, 1, 4, 2, 5], &mut rows, &[2, 3], 1).unwrap();
/// assert_eq!(rows, [0, 1, 2, 3, 4, 5]);
/// ```
pub fn in_c_order(from: &[u8], to: &mut [u8], shape: &[u64], item: u64) -> Option<()> {
    let item = usize::try_from(item).ok().filter(|item| *item > 0)?;
    // Bytes from one index of each dimension to the next.
    let mut steps = Vec::with_capacity(shape.len());
    let mut whole = item;
    for dim in shape {
        steps.push(whole);
        whole = whole.checked_mul(usize::try_from(*dim).ok()?)?;
    }
    if whole != from.len() || whole != to.len() {
        return None;
    }
    let Some(((row, outer), (step, steps))) = shape.split_last().zip(steps.split_last()) else {
        to.copy_from_slice(from); // a scalar
        return Some(());
    };
    if whole == 0 {
        return Some(());
    }
    let row = usize::try_from(*row).ok()?;
    let mut index = vec![0u64; outer.len()];
    for rows in to.chunks_exact_mut(row * item) {
        let mut at = 0;
        for (index, step) in index.iter().zip(steps) {
            at += usize::try_from(*index).ok()? * step;
        }
        for element in rows.chunks_exact_mut(item) {
            element.copy_from_slice(from.get(at..at + item)?);
            at += step;
        }
        // The next index of the outer dimensions, the last of them first.
        for (index, dim) in index.iter_mut().zip(outer).rev() {
            *index += 1;
            if *index < *dim {
                break;
            }
            *index = 0;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::in_c_order;

    fn turned(from: &[u8], shape: &[u64], item: u64) -> Option<Vec<u8>> {
        let mut to = vec![0; from.len()];
        in_c_order(from, &mut to, shape, item).map(|()| to)
    }

    #[test]
    fn the_last_index_runs_fastest() {
        assert_eq!(
            turned(&[0, 3, 1, 4, 2, 5], &[2, 3], 1).unwrap(),
            [0, 1, 2, 3, 4, 5]
        );
        let two = [0, 0, 3, 3, 1, 1, 4, 4, 2, 2, 5, 5];
        assert_eq!(
            turned(&two, &[2, 3], 2).unwrap(),
            [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        );
        let cube = [0, 4, 2, 6, 1, 5, 3, 7];
        assert_eq!(
            turned(&cube, &[2, 2, 2], 1).unwrap(),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
        for shape in [&[4][..], &[4, 1], &[1, 4, 1]] {
            assert_eq!(turned(&[1, 2, 3, 4], shape, 1).unwrap(), [1, 2, 3, 4]);
        }
        assert_eq!(turned(&[7, 8], &[], 2).unwrap(), [7, 8]);
        assert!(turned(&[], &[3, 0], 4).unwrap().is_empty());
    }

    #[test]
    fn what_does_not_make_that_many_bytes_is_none() {
        for (shape, item) in [
            (&[2, 2][..], 1),
            (&[3], 0),
            (&[u64::MAX, u64::MAX], 2),
            (&[u64::MAX], 1),
        ] {
            assert_eq!(turned(&[1, 2, 3], shape, item), None);
        }
    }
}
