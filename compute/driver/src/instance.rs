//! A Vulkan instance for each linked driver.

use std::ffi::{CStr, c_char};
use std::fmt;

use ash::vk;
use wgpu_hal::vulkan::Instance as HalInstance;

/// Version of the interface between loader and driver that this crate requests: the newest that the drivers know.
const LOADER_INTERFACE: u32 = 5;

/// Newest version of Vulkan that wgpu-hal supports.
const API_VERSION: u32 = vk::API_VERSION_1_3;

type GetInstanceProcAddr =
    unsafe extern "system" fn(vk::Instance, *const c_char) -> vk::PFN_vkVoidFunction;
type Negotiate = unsafe extern "system" fn(*mut u32) -> vk::Result;

/// A driver that is linked into this program.
#[derive(Clone, Copy)]
pub struct LinkedDriver {
    /// The name that `--vulkan` takes.
    pub name: &'static str,
    functions: GetInstanceProcAddr,
    negotiate: Negotiate,
}

impl fmt::Debug for LinkedDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkedDriver")
            .field("name", &self.name)
            .finish()
    }
}

/// Declares the two functions that a sealed driver exports, and its row of the table.
#[cfg(any(vulkan_llvmpipe, vulkan_panvk, vulkan_v3dv))]
macro_rules! driver {
    ($name:literal, $functions:ident, $negotiate:ident) => {{
        unsafe extern "system" {
            fn $functions(instance: vk::Instance, name: *const c_char) -> vk::PFN_vkVoidFunction;
            fn $negotiate(version: *mut u32) -> vk::Result;
        }
        LinkedDriver {
            name: $name,
            functions: $functions,
            negotiate: $negotiate,
        }
    }};
}

/// The linked drivers: hardware first, the processor last.
pub const DRIVERS: &[LinkedDriver] = &[
    #[cfg(vulkan_v3dv)]
    driver!("v3dv", v3dv_icd_functions, v3dv_icd_negotiate),
    #[cfg(vulkan_panvk)]
    driver!("panvk", panvk_icd_functions, panvk_icd_negotiate),
    #[cfg(vulkan_llvmpipe)]
    driver!("llvmpipe", llvmpipe_icd_functions, llvmpipe_icd_negotiate),
];

/// Why a driver made no instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// wgpu refused the instance.
    #[error("{driver}: wgpu refuses the instance: {why}")]
    Adopt {
        /// The driver.
        driver: &'static str,
        /// wgpu's reason.
        why: String,
    },
    /// The driver made no instance.
    #[error("{driver}: no Vulkan instance: {result}")]
    Create {
        /// The driver.
        driver: &'static str,
        /// Vulkan's result.
        result: vk::Result,
    },
    /// The driver does not support the requested version of the loader's interface.
    #[error("{driver}: not the interface that is spoken here: {result}")]
    Interface {
        /// The driver.
        driver: &'static str,
        /// Vulkan's result.
        result: vk::Result,
    },
}

/// An instance and the driver behind it. Its devices never mix with another driver's.
#[derive(Debug)]
pub struct LinkedInstance {
    /// The driver's name.
    pub driver: &'static str,
    /// The instance for wgpu's safe interface.
    pub instance: wgpu::Instance,
}

/// An instance of every linked driver, in the order of [`DRIVERS`]; empty if no driver is linked.
#[must_use]
pub fn instances() -> Vec<Result<LinkedInstance, Error>> {
    DRIVERS.iter().map(instance).collect()
}

/// Makes an instance of one driver.
///
/// The program has no validation layer and requests none. A driver without hardware is no error: its instance has no
/// adapters.
pub fn instance(driver: &LinkedDriver) -> Result<LinkedInstance, Error> {
    let name = driver.name;
    let refused = |result| Error::Create {
        driver: name,
        result,
    };
    let adopt = |why: wgpu_hal::InstanceError| Error::Adopt {
        driver: name,
        why: why.to_string(),
    };
    negotiate(driver)?;
    let flags = wgpu::InstanceFlags::empty();
    // SAFETY: the function is a Vulkan driver's vk_icdGetInstanceProcAddr: it returns the global commands without an
    // instance, and every other command for its own instances.
    let entry = unsafe {
        ash::Entry::from_static_fn(ash::StaticFn {
            get_instance_proc_addr: driver.functions,
        })
    };
    // SAFETY: the entry is valid; drivers are never unloaded.
    let version = unsafe { entry.try_enumerate_instance_version() }
        .map_err(refused)?
        // A driver without the function implements Vulkan 1.0, which did not have it.
        .unwrap_or(vk::API_VERSION_1_0);
    let extensions = HalInstance::desired_extensions(&entry, version, flags).map_err(adopt)?;
    let raw = create(&entry, &extensions).map_err(refused)?;
    // SAFETY: the raw instance was made from this entry with exactly these extensions. Without a drop
    // callback wgpu owns it and destroys it.
    let hal = unsafe {
        HalInstance::from_raw(
            entry,
            raw,
            version,
            0,
            None,
            extensions,
            flags,
            wgpu::MemoryBudgetThresholds::default(),
            false,
            None,
        )
    };
    let hal = hal.map_err(adopt)?;
    // SAFETY: the instance was just made and has no other owner.
    let instance = unsafe { wgpu::Instance::from_hal::<wgpu_hal::api::Vulkan>(hal) };
    Ok(LinkedInstance {
        driver: name,
        instance,
    })
}

fn negotiate(driver: &LinkedDriver) -> Result<(), Error> {
    let mut version = LOADER_INTERFACE;
    // SAFETY: the function is a driver's vk_icdNegotiateLoaderICDInterfaceVersion; it writes the
    // version it will speak through the pointer.
    let result = unsafe { (driver.negotiate)(&raw mut version) };
    if result == vk::Result::SUCCESS {
        return Ok(());
    }
    Err(Error::Interface {
        driver: driver.name,
        result,
    })
}

fn create(entry: &ash::Entry, extensions: &[&'static CStr]) -> Result<ash::Instance, vk::Result> {
    let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
    let application = vk::ApplicationInfo::default()
        .application_name(c"alknet")
        .api_version(API_VERSION);
    let wanted = vk::InstanceCreateInfo::default()
        .application_info(&application)
        .enabled_extension_names(&names);
    // SAFETY: every pointer in `wanted` is to something that outlives the call.
    unsafe { entry.create_instance(&wanted, None) }
}
