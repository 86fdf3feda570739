//! All objects of a folder, one after the other.

use std::fs::{self, DirEntry, ReadDir};
use std::io::{self, ErrorKind};

use blake3::Hash;

use crate::error::ObjectError;
use crate::folder::ObjectFolder;

/// Folders below the folder of objects: one for each pair of digits.
const FOLDERS: u16 = 256;

/// An object that a list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// BLAKE3 of the object as it was stored.
    pub hash: Hash,
    /// Bytes of its file.
    pub size: u64,
}

/// How far a list came. It holds one open folder, and no names.
#[derive(Debug, Default)]
pub struct ObjectCursor {
    /// The next folder.
    folder: u16,
    /// The folder before it.
    entries: Option<ReadDir>,
}

impl ObjectFolder {
    /// The next object of a list, which begins with the cursor's default value. An object that is placed or removed
    /// meanwhile may be in the list or not; each other object is in it once. There is no order. Blocks.
    ///
    /// # Errors
    /// [`ObjectError::Io`].
    pub fn next_object(
        &self,
        cursor: &mut ObjectCursor,
    ) -> Result<Option<ListedObject>, ObjectError> {
        let list = |error| ObjectError::io("list the objects", error);
        while let Some((hash, entry)) = self.find_next(cursor).map_err(list)? {
            match entry.metadata() {
                Ok(metadata) => {
                    let size = metadata.len();
                    return Ok(Some(ListedObject { hash, size }));
                }
                // It was removed after the folder was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(list(error)),
            }
        }
        Ok(None)
    }

    /// The hash of the next object of a list, by its name alone: an object whose inode the disk cannot read has one, too.
    pub(crate) fn next_hash(&self, cursor: &mut ObjectCursor) -> Result<Option<Hash>, ObjectError> {
        let next = self.find_next(cursor);
        let next = next.map_err(|error| ObjectError::io("list the objects", error))?;
        Ok(next.map(|(hash, _)| hash))
    }

    /// All objects, as by [`next_object`](Self::next_object).
    pub fn objects(&self) -> impl Iterator<Item = Result<ListedObject, ObjectError>> + '_ {
        let mut cursor = ObjectCursor::default();
        let mut is_over = false;
        std::iter::from_fn(move || {
            // A folder that cannot be read would be tried again and again.
            if is_over {
                return None;
            }
            let next = self.next_object(&mut cursor);
            is_over = next.is_err();
            next.transpose()
        })
    }

    fn find_next(&self, cursor: &mut ObjectCursor) -> io::Result<Option<(Hash, DirEntry)>> {
        loop {
            let Some(entries) = &mut cursor.entries else {
                if cursor.folder == FOLDERS {
                    return Ok(None);
                }
                let folder = self.objects_folder().join(format!("{:02x}", cursor.folder));
                cursor.entries = match fs::read_dir(folder) {
                    // A file of that name is not of the folder.
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::NotFound | ErrorKind::NotADirectory
                        ) =>
                    {
                        None
                    }
                    entries => Some(entries?),
                };
                cursor.folder += 1;
                continue;
            };
            let Some(entry) = entries.next() else {
                cursor.entries = None;
                continue;
            };
            let entry = entry?;
            let name = entry.file_name();
            // A file of another name is not of the folder.
            let Some(hash) = name.to_str().and_then(|name| Hash::from_hex(name).ok()) else {
                continue;
            };
            if self.path(&hash) == entry.path() {
                return Ok(Some((hash, entry)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::OutboardPolicy;

    #[test]
    fn a_list_has_each_object_once_and_no_other_file() {
        let root = tempfile::tempdir().expect("writable");
        let objects =
            ObjectFolder::open(root.path(), OutboardPolicy::Placed).expect("the folder is ours");
        let mut expected = BTreeMap::new();
        for size in 0..80_u64 {
            let mut staged = objects.stage().expect("writable");
            staged.write_at(0, &vec![7; size as usize]).expect("room");
            let placed = staged.place().expect("room");
            expected.insert(placed.hash().to_string(), size);
        }
        let whole = expected.keys().next().expect("there are some").clone();
        let folder = root.path().join("objects").join(&whole[..2]);
        let foreign = [
            "notes".to_owned(),
            whole.to_uppercase(),
            // Of another folder.
            format!(
                "{}{}",
                if whole.starts_with("0") { "f" } else { "0" },
                &whole[1..]
            ),
        ];
        for name in foreign {
            fs::write(folder.join(name), b"x").expect("writable");
        }
        fs::write(root.path().join("objects/notes"), b"x").expect("writable");
        let unused = (0..256).map(|n| root.path().join(format!("objects/{n:02x}")));
        let unused = unused.filter(|folder| !folder.exists()).take(2);
        for folder in unused {
            fs::write(folder, b"x").expect("writable");
        }
        let listed = objects.objects().map(|object| object.expect("readable"));
        let listed: Vec<_> = listed.collect();
        assert_eq!(listed.len(), expected.len());
        let listed = listed.iter();
        let listed: BTreeMap<_, _> = listed
            .map(|object| (object.hash.to_string(), object.size))
            .collect();
        assert_eq!(listed, expected);
    }
}
