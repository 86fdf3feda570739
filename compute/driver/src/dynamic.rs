//! The functions of dynamic linking, for a program without a dynamic linker.
//!
//! LLVM resolves the names in generated code by `dlopen(NULL)` and `dlsym`. The C library's own versions find nothing
//! in a static program, and LLVM then jumps to address 0. The linker finds the functions of this module first, so
//! they replace the C library's in the whole program. They never load a file.
//!
//! `dladdr` reports that every address lies in this one program, whose start it returns. Mesa reads the build id
//! there and names its shader cache by it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use crate::UNKNOWN_SYMBOL_EXIT;
use crate::symbols;

/// The address of this static is the handle of "this program".
static THIS_PROGRAM: u8 = 0;

/// The answer of `dlerror`.
const NOTHING_IS_LOADED: &CStr = c"static executable: nothing is loaded at run time";

/// The file name that `dladdr` returns.
const OWN_FILE: &CStr = c"/proc/self/exe";

unsafe extern "C" {
    /// Where the program begins in memory; the linker sets it.
    static __executable_start: u8;
    /// Where the program ends in memory.
    static _end: u8;
}

fn this_program() -> *mut c_void {
    (&raw const THIS_PROGRAM).cast_mut().cast()
}

/// Returns the handle of this program if `file` is null, and null for any name.
///
/// # Safety
///
/// `file` is null or a C string, as the C library's `dlopen` requires; the name is not read.
#[unsafe(no_mangle)]
unsafe extern "C" fn dlopen(file: *const c_char, _mode: c_int) -> *mut c_void {
    if file.is_null() {
        this_program()
    } else {
        ptr::null_mut()
    }
}

/// Finds a function by its name. With the handle of this program the function must exist, because generated code is
/// about to call it. Every other caller only tests whether the C library has a function.
///
/// # Safety
///
/// The name is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: the caller guarantees a C string.
    let name = unsafe { CStr::from_ptr(name) };
    if handle == this_program() {
        return resolve_or_end(name);
    }
    symbols::find(name.to_bytes()).map_or(ptr::null_mut(), |address| address.0 as *mut c_void)
}

/// Does nothing, because nothing was opened.
#[unsafe(no_mangle)]
extern "C" fn dlclose(_handle: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn dlerror() -> *mut c_char {
    NOTHING_IS_LOADED.as_ptr().cast_mut()
}

/// Reports every address of this program as a part of this program; names of symbols are unknown.
///
/// # Safety
///
/// `info` is null or points to a `Dl_info` that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn dladdr(address: *const c_void, info: *mut libc::Dl_info) -> c_int {
    let start = &raw const __executable_start;
    let own = start.addr()..(&raw const _end).addr();
    if info.is_null() || !own.contains(&address.addr()) {
        return 0;
    }
    let found = libc::Dl_info {
        dli_fname: OWN_FILE.as_ptr(),
        dli_fbase: start.cast_mut().cast(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    // SAFETY: the caller guarantees that `info` may be written, and it is not null.
    unsafe { info.write(found) };
    1
}

/// Returns the function, or ends the process: otherwise the generated code would jump to address 0, which leaves no
/// message.
pub(crate) fn resolve_or_end(name: &CStr) -> *mut c_void {
    if let Some(address) = symbols::find(name.to_bytes()) {
        return address.0 as *mut c_void;
    }
    for part in [
        b"alknet-gpu: generated code calls \"".as_slice(),
        name.to_bytes(),
        b"\", which is not linked in\n",
    ] {
        // Rust's output takes a lock that another thread may hold while this one is in the driver. SAFETY: the bytes
        // are valid; the result of the write changes nothing.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process without running any of its code.
    unsafe { libc::_exit(UNKNOWN_SYMBOL_EXIT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_open_and_nothing_else_ever_is() {
        // SAFETY: names are null or C strings.
        let (own, other) = unsafe { (dlopen(ptr::null(), 0), dlopen(c"libm.so.6".as_ptr(), 0)) };
        assert!(!own.is_null() && other.is_null());
        // SAFETY: names are C strings.
        let (known, unknown) = unsafe {
            (
                dlsym(own, c"floor".as_ptr()),
                dlsym(ptr::null_mut(), c"no_such_function".as_ptr()),
            )
        };
        assert!(!known.is_null() && unknown.is_null());
        assert_eq!(dlclose(own), 0);
        assert!(!dlerror().is_null());
    }

    #[test]
    fn own_addresses_differ_from_others() {
        let mut info = libc::Dl_info {
            dli_fname: ptr::null(),
            dli_fbase: ptr::null_mut(),
            dli_sname: ptr::null(),
            dli_saddr: ptr::null_mut(),
        };
        let own = dladdr as *const c_void;
        let heap = Box::new(0_u8);
        // SAFETY: `info` may be written.
        let (inside, outside) = unsafe {
            (
                dladdr(own, &raw mut info),
                dladdr((&raw const *heap).cast(), ptr::null_mut()),
            )
        };
        assert_eq!((inside, outside), (1, 0));
        assert!(info.dli_fbase.addr() <= own.addr());
    }
}
