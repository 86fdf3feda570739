//! Which row leaves a full table.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;

/// The row that leaves a full table, of rows with their owner and their age: the oldest one of the owner with the most rows.
/// So an owner with many rows displaces its own, and none of the others.
pub(super) fn choose_row<K, O: Eq + Hash, A: Ord>(
    rows: impl Iterator<Item = (K, O, A)>,
) -> Option<K> {
    // The rows of each owner, and the oldest of them.
    let mut owners: HashMap<O, (usize, A, K)> = HashMap::new();
    for (row, owner, age) in rows {
        match owners.get_mut(&owner) {
            Some((count, oldest, found)) => {
                *count += 1;
                if age < *oldest {
                    (*oldest, *found) = (age, row);
                }
            }
            None => {
                owners.insert(owner, (1, age, row));
            }
        }
    }
    let crowds = owners.into_values().map(|(count, oldest, row)| {
        let rank = (Reverse(count), oldest);
        (rank, row)
    });
    let chosen = crowds.min_by(|(one, _), (other, _)| one.cmp(other));
    chosen.map(|(_, row)| row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_row_of_the_owner_with_the_most_leaves() {
        let rows = [("a", "ada", 1), ("b", "bob", 9), ("c", "bob", 5)];
        assert_eq!(choose_row(rows.into_iter()), Some("c"));
        // With as many rows, the oldest of all.
        assert_eq!(choose_row(rows.into_iter().take(2)), Some("a"));
        assert_eq!(choose_row(rows.into_iter().take(0)), None);
    }
}
