//! Every adapter of every driver, best first.

use wgpu::{Adapter, AdapterInfo, Backends, DeviceType};

use crate::instance::{Error, LinkedInstance};

/// An adapter and its driver.
#[derive(Debug)]
pub struct DriverAdapter {
    /// The driver's name.
    pub driver: &'static str,
    /// The adapter's description of itself.
    pub info: AdapterInfo,
    /// The adapter for wgpu's safe interface.
    pub adapter: Adapter,
    /// Keeps the driver's instance alive.
    _instance: wgpu::Instance,
}

/// The adapters that were found, and the drivers that found none.
#[derive(Debug, Default)]
pub struct AdapterInventory {
    /// Adapters by class: discrete, integrated, virtual, processor, others; in each class in the
    /// driver's order.
    pub adapters: Vec<DriverAdapter>,
    /// Drivers without hardware on this machine.
    pub idle: Vec<&'static str>,
    /// Errors of drivers that made no instance.
    pub errors: Vec<Error>,
}

/// Lists the adapters of every instance and sorts them.
#[must_use]
pub fn adapters(
    instances: impl IntoIterator<Item = Result<LinkedInstance, Error>>,
) -> AdapterInventory {
    let mut found = AdapterInventory::default();
    for instance in instances {
        match instance {
            Ok(linked) => ask(&mut found, &linked),
            Err(error) => found.errors.push(error),
        }
    }
    // The sort is stable, because a driver lists its own best adapter first.
    found
        .adapters
        .sort_by_key(|adapter| rank(adapter.info.device_type));
    found
}

fn ask(found: &mut AdapterInventory, linked: &LinkedInstance) {
    let listed = linked.instance.enumerate_adapters(Backends::VULKAN);
    let listed = pollster::block_on(listed);
    // A driver without its hardware is usual: the binary carries drivers for several boards.
    if listed.is_empty() {
        found.idle.push(linked.driver);
    }
    for adapter in listed {
        found.adapters.push(DriverAdapter {
            driver: linked.driver,
            info: adapter.get_info(),
            adapter,
            _instance: linked.instance.clone(),
        });
    }
}

/// The rank of a class; lower is better.
const fn rank(class: DeviceType) -> u8 {
    match class {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Cpu => 3,
        DeviceType::Other => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_comes_before_the_processor() {
        let mut classes = [
            DeviceType::Other,
            DeviceType::Cpu,
            DeviceType::IntegratedGpu,
            DeviceType::DiscreteGpu,
        ];
        classes.sort_by_key(|class| rank(*class));
        let best_first = [
            DeviceType::DiscreteGpu,
            DeviceType::IntegratedGpu,
            DeviceType::Cpu,
            DeviceType::Other,
        ];
        assert_eq!(classes, best_first);
    }

    #[test]
    fn a_failing_driver_is_reported_and_hides_no_other() {
        let error = Error::Create {
            driver: "x",
            result: ash::vk::Result::ERROR_INCOMPATIBLE_DRIVER,
        };
        let found = adapters([Err(error.clone()), Err(error.clone())]);
        assert_eq!(found.errors, [error.clone(), error]);
        assert!(found.adapters.is_empty() && found.idle.is_empty());
    }
}
