//! Fetches a whole file in order, verified by its id.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::json;

use super::partial_download::PartialDownload;
use super::{ClientError, PullResult, TensorClient, expect_size, local, proven};
use crate::limits::GROUP_BYTES;
use crate::path::TensorFileRef;

impl TensorClient {
    /// Fetches a whole file. Bytes of an earlier attempt are not fetched again, and only verified
    /// bytes are written.
    ///
    /// If `src` is a path, the server states the file's id.
    ///
    /// # Errors
    /// See [`ClientError`]. `target` is then unchanged.
    pub async fn pull(
        &self,
        src: &TensorFileRef,
        target: &Path,
        on_progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<PullResult, ClientError> {
        let header = self.header(src).await?;
        let (id, len) = (header.id, header.meta.file_len());
        let mut partial = PartialDownload::open(target, &id.0)?;
        // The earlier attempt verified each whole group before it wrote it; a part of a group is
        // fetched again.
        let from = partial.len()?.min(len) / GROUP_BYTES * GROUP_BYTES;
        partial.cut(from)?;
        let want = json!({ "want": "range", "range": [from, len], "encoding": "bao16" });
        // A file of no bytes is requested as well, so that the server's size confirms it.
        if from < len || len == 0 {
            let (head, recv) = self.fetch(src, want).await?;
            expect_size(&head, len)?;
            let shown = partial.shown();
            let file = partial.file();
            // The new bytes follow those that an earlier attempt wrote.
            file.seek(SeekFrom::End(0)).map_err(local(&shown))?;
            let write = |at: u64, bytes: &[u8]| {
                file.write_all(bytes).map_err(local(&shown))?;
                on_progress(at + bytes.len() as u64, len);
                Ok(())
            };
            proven(recv, &id.0, len, &(from..len), write).await?;
        }
        // The disk may have changed what an earlier attempt wrote.
        partial.expect(0..len, &id.0)?;
        partial.name(target)?;
        Ok(PullResult {
            id,
            bytes: len,
            fetched: len - from,
        })
    }
}
