//! Memory for tensors: buffers of the device or, without a device, memory of this process.

use std::sync::{Arc, Mutex, PoisonError};

use alknet_compute_wire::codes;

use super::fault::{GpuFault, GpuResult};
use crate::device::GpuDevice;

/// Memory for tensors. Without a device, requests that need none still work.
#[derive(Debug)]
pub(super) enum TensorMemory {
    /// Memory of the device, which may be memory of this process.
    Device(Box<GpuDevice>),
    /// Memory of this process, with the reason for the absence of a device.
    Process(String),
}

/// The bytes of a tensor. Clones share the bytes.
#[derive(Clone, Debug)]
pub(super) enum TensorStorage {
    Device(wgpu::Buffer),
    Process(Arc<Mutex<Vec<u8>>>),
}

impl TensorStorage {
    /// The bytes that it takes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Device(buffer) => buffer.size(),
            Self::Process(bytes) => locked(bytes, |bytes| bytes.len() as u64),
        }
    }

    /// The buffer that a shader binds.
    pub(super) fn buffer(&self) -> GpuResult<&wgpu::Buffer> {
        match self {
            Self::Device(buffer) => Ok(buffer),
            Self::Process(_) => Err(GpuFault::internal("no memory of a device")),
        }
    }
}

impl TensorMemory {
    /// The device.
    pub(super) fn device(&self) -> GpuResult<&GpuDevice> {
        match self {
            Self::Device(device) => Ok(device),
            Self::Process(why) => Err(GpuFault::new(codes::NO_ADAPTER, why.clone())),
        }
    }

    /// Storage of `bytes` zeros.
    pub(super) fn zeroed(&self, bytes: u64) -> GpuResult<TensorStorage> {
        Ok(match self {
            Self::Device(device) => TensorStorage::Device(device.buffer(bytes)?),
            Self::Process(_) => in_process(vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)]),
        })
    }

    /// Storage with these bytes.
    pub(super) fn upload(&self, bytes: &[u8]) -> GpuResult<TensorStorage> {
        Ok(match self {
            Self::Device(device) => TensorStorage::Device(device.upload(bytes)?),
            Self::Process(_) => in_process(bytes.to_vec()),
        })
    }

    /// A copy of the bytes.
    pub(super) fn copied(&self, from: &TensorStorage) -> GpuResult<TensorStorage> {
        Ok(match (self, from) {
            (Self::Device(device), TensorStorage::Device(from)) => {
                let copy = device.buffer(from.size())?;
                device.copy(from, &copy)?;
                TensorStorage::Device(copy)
            }
            (_, TensorStorage::Process(from)) => in_process(locked(from, |bytes| bytes.clone())),
            // A worker without a device has no device storage; this arm only completes the match.
            (Self::Process(why), TensorStorage::Device(_)) => {
                return Err(GpuFault::new(codes::NO_ADAPTER, why.clone()));
            }
        })
    }

    /// Passes the bytes to `work`.
    pub(super) fn with_read<T>(
        &self,
        storage: &TensorStorage,
        work: impl FnOnce(&[u8]) -> T,
    ) -> GpuResult<T> {
        match storage {
            TensorStorage::Device(buffer) => Ok(self.device()?.with_read(buffer, work)?),
            TensorStorage::Process(bytes) => Ok(locked(bytes, |bytes| work(bytes))),
        }
    }

    /// Overwrites a part, which must lie inside.
    pub(super) fn write(&self, storage: &TensorStorage, offset: u64, new: &[u8]) -> GpuResult<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = from.saturating_add(new.len());
        let into = |bytes: &mut [u8]| match bytes.get_mut(from..end) {
            Some(part) => {
                part.copy_from_slice(new);
                Ok(())
            }
            None => Err(GpuFault::internal("a buffer shorter than it is")),
        };
        match storage {
            TensorStorage::Process(bytes) => locked(bytes, |bytes| into(bytes)),
            TensorStorage::Device(buffer) => {
                let device = self.device()?;
                let aligned =
                    offset.is_multiple_of(WORD) && new.len().is_multiple_of(WORD as usize);
                if aligned || device.host_memory {
                    return Ok(device.write(buffer, offset, new)?);
                }
                // Memory of the device can be written in whole words only.
                let mut all = device.read(buffer)?;
                into(&mut all)?;
                Ok(device.write(buffer, 0, &all)?)
            }
        }
    }
}

/// Bytes of a word, the unit in which devices are written.
const WORD: u64 = 4;

fn in_process(bytes: Vec<u8>) -> TensorStorage {
    TensorStorage::Process(Arc::new(Mutex::new(bytes)))
}

/// One thread does all of this module's work; a panic in it ends the process.
fn locked<T>(bytes: &Mutex<Vec<u8>>, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    work(&mut bytes.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_bytes_are_kept_all_the_same() {
        let memory = TensorMemory::Process("none here".to_owned());
        let a = memory.upload(b"abcdef").expect("kept");
        let b = memory.copied(&a).expect("copied");
        memory.write(&a, 2, b"XY").expect("inside");
        assert!(memory.write(&a, 5, b"XY").is_err());
        let read = |kept| memory.with_read(kept, <[u8]>::to_vec).expect("there");
        assert_eq!(
            (read(&a), read(&b)),
            (b"abXYef".to_vec(), b"abcdef".to_vec())
        );
        assert_eq!(memory.zeroed(3).expect("kept").size(), 3);
        let why = memory.device().expect_err("none");
        assert_eq!(
            (why.code, why.message.as_str()),
            (codes::NO_ADAPTER, "none here")
        );
        assert!(a.buffer().is_err());
    }
}
