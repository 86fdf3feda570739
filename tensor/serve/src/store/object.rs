//! A stored container with its header read.

use std::fs::File;

use alknet_objects::{ObjectFolder, ObjectStamp, ObjectView};
use alknet_tensor::{ContainerLimits, ContainerReader, FileId, Hash, Meta};

use crate::error::ServeError;

/// An open container.
#[derive(Debug)]
pub struct Object {
    id: FileId,
    reader: ContainerReader<File>,
    stamp: ObjectStamp,
    header_hash: Hash,
}

impl Object {
    /// Opens the file and reads its header, which says how long the file has to be. What another program put in its place is
    /// not opened: a link, whose target is another file, or a pipe, which would keep the caller waiting.
    pub(crate) fn open(
        objects: &ObjectFolder,
        id: FileId,
        limits: &ContainerLimits,
    ) -> Result<Self, ServeError> {
        // The file may have been removed after its path was resolved.
        let size = objects.size(&id.0)?.ok_or(ServeError::Missing)?;
        let file = objects.open_file(&id.0, size)?;
        let unread = |error| ServeError::io("look at a stored file", error);
        // The stamp is taken before the header is read, so `check` finds a change that happens in
        // between.
        let stamp = ObjectStamp::read(&file).map_err(unread)?;
        let reader = ContainerReader::open(file, limits).map_err(ServeError::Stored)?;
        let header_hash = reader.header_hash().map_err(ServeError::Stored)?;
        Ok(Self {
            id,
            reader,
            stamp,
            header_hash,
        })
    }

    /// BLAKE3 of the file as it was stored.
    #[must_use]
    pub const fn id(&self) -> FileId {
        self.id
    }

    /// The parsed header.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        self.reader.meta()
    }

    /// The container.
    #[must_use]
    pub const fn reader(&self) -> &ContainerReader<File> {
        &self.reader
    }

    /// BLAKE3 of the header with its length prefix.
    #[must_use]
    pub const fn header_hash(&self) -> Hash {
        self.header_hash
    }

    /// Checks that the file is unchanged since it was opened.
    ///
    /// # Errors
    /// `E_IO`: another program wrote to it or shortened it.
    pub fn check(&self) -> Result<(), ServeError> {
        Ok(self.view().check()?)
    }

    /// Whether the file was removed, so that only responses that opened it before still read it.
    pub(crate) fn is_removed(&self) -> bool {
        self.view().is_removed()
    }

    /// Fills `buffer` with the bytes from `at` on.
    pub(crate) fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), ServeError> {
        Ok(self.view().read_exact_at(buffer, at)?)
    }

    /// The file as the object of its id.
    pub(crate) const fn view(&self) -> ObjectView<'_> {
        ObjectView::new(self.id.0, self.reader.source(), self.stamp)
    }

    pub(crate) fn into_file(self) -> File {
        self.reader.into_source()
    }
}
