//! SHA-256 of many messages at once.

use std::time::{Duration, Instant};

use alknet_compute_wire::limits::{MESSAGES_MAX, TENSOR_BYTES_MAX};
use alknet_compute_wire::{ByteSource, KernelReply, KernelVariant, Sha256Request as Ask};
use sha2::{Digest, Sha256};

use super::buffers::{SourceBytes, check_length, check_quota};
use super::engine::GpuJob;
use super::fault::{GpuFault, GpuResult};
use super::memory::TensorStorage;
use super::templates::KernelName;
use crate::milliseconds;

/// Invocations in a workgroup.
const GROUP: usize = 64;

/// Bytes of a digest.
const DIGEST: usize = 32;

impl GpuJob<'_> {
    pub(super) fn sha256(&mut self, ask: &Ask) -> GpuResult<KernelReply> {
        let begun = Instant::now();
        let total = self.tensor_table.len(&ask.data)?;
        check_length(total)?;
        let spans = self.spans(&ask.offsets, total)?;
        check_quota(self.used, (spans.len() * DIGEST) as u64)?;
        let mut jit = Duration::ZERO;
        let bytes = if spans.is_empty() {
            self.deliver(ask.to, Vec::new())?
        } else {
            match ask.variant {
                KernelVariant::Host => {
                    let digests = self.hash_here(&ask.data, &spans)?;
                    self.deliver(ask.to, digests)?
                }
                KernelVariant::Wgsl => self.hash_there(ask, &spans, &mut jit)?,
            }
        };
        Ok(KernelReply {
            bytes,
            ms: milliseconds(begun.elapsed()),
            jit_ms: milliseconds(jit),
        })
    }

    /// The offset and length of each message.
    fn spans(&self, offsets: &ByteSource, total: u64) -> GpuResult<Vec<[u32; 2]>> {
        let numbers = |bytes: &[u8]| spans(bytes, total);
        match self.tensor_table.locate(offsets)? {
            SourceBytes::Memory(bytes) => numbers(&bytes),
            SourceBytes::Buffer(stored) => {
                // A buffer of the device may be longer than the tensor in it.
                let len = usize::try_from(stored.len).unwrap_or(usize::MAX);
                let whole = |bytes: &[u8]| numbers(&bytes[..len.min(bytes.len())]);
                self.engine.memory.with_read(&stored.storage, whole)?
            }
        }
    }

    fn hash_here(&self, data: &ByteSource, spans: &[[u32; 2]]) -> GpuResult<Vec<u8>> {
        let hash = |bytes: &[u8]| {
            let mut digests = Vec::with_capacity(spans.len() * DIGEST);
            for [from, len] in spans.iter().map(|span| span.map(|number| number as usize)) {
                digests.extend_from_slice(&Sha256::digest(&bytes[from..from + len]));
            }
            digests
        };
        match self.tensor_table.locate(data)? {
            SourceBytes::Memory(bytes) => Ok(hash(&bytes)),
            SourceBytes::Buffer(stored) => self.engine.memory.with_read(&stored.storage, hash),
        }
    }

    fn hash_there(
        &mut self,
        ask: &Ask,
        spans: &[[u32; 2]],
        jit: &mut Duration,
    ) -> GpuResult<Option<bytes::Bytes>> {
        let device = self.engine.memory.device()?;
        let data = (self.tensor_table).stored_from(&self.engine.memory, &ask.data, self.used)?;
        let len = (spans.len() * DIGEST) as u64;
        let places = device.upload(bytemuck::cast_slice(spans))?;
        let digests = device.buffer(len)?;
        let buffers = [(0, data.storage.buffer()?), (1, &places), (2, &digests)];
        let (device, kernel) = self.kernel(KernelName::Sha256, &buffers, jit)?;
        let groups = u32::try_from(spans.len().div_ceil(GROUP)).unwrap_or(u32::MAX);
        device.submit(kernel, &buffers, [groups, 1, 1])?;
        device.wait()?;
        // The caller may have given the job up while the device computed.
        self.still_wanted()?;
        self.deliver_stored(ask.to, TensorStorage::Device(digests), len)
    }
}

/// Offsets as spans. Offsets must not fall, and must end inside the data.
fn spans(bytes: &[u8], total: u64) -> GpuResult<Vec<[u32; 2]>> {
    if !bytes.len().is_multiple_of(size_of::<u32>()) {
        return Err(GpuFault::shape("offsets are numbers of 32 bits"));
    }
    let offsets: Vec<u32> = bytemuck::pod_collect_to_vec(bytes);
    if offsets.len() > MESSAGES_MAX + 1 {
        let most = (MESSAGES_MAX * DIGEST) as u64;
        let bytes = offsets.len() as u64 * DIGEST as u64;
        return Err(GpuFault::too_large(
            "digests",
            bytes,
            most.min(TENSOR_BYTES_MAX),
        ));
    }
    let mut spans = Vec::with_capacity(offsets.len());
    for pair in offsets.windows(2) {
        let Some(len) = pair[1].checked_sub(pair[0]) else {
            return Err(GpuFault::shape("an offset before the one before it"));
        };
        spans.push([pair[0], len]);
    }
    if offsets.last().is_some_and(|end| u64::from(*end) > total) {
        return Err(GpuFault::shape("an offset beyond the data"));
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(offsets: &[u32], total: u64) -> GpuResult<Vec<[u32; 2]>> {
        spans(bytemuck::cast_slice(offsets), total)
    }

    #[test]
    fn offsets_are_ends_and_beginnings() {
        assert_eq!(ranges(&[], 0).expect("none"), Vec::<[u32; 2]>::new());
        assert_eq!(ranges(&[3], 3).expect("none"), Vec::<[u32; 2]>::new());
        assert_eq!(ranges(&[1, 1, 4], 4).expect("two"), [[1, 0], [1, 3]]);
        assert!(ranges(&[0, 5], 4).is_err());
        assert!(ranges(&[4, 3], 4).is_err());
        assert!(ranges(&[9], 4).is_err());
        assert!(spans(&[0; 7], 4).is_err());
    }
}
