//! A stand-in for the CUDA driver, which `driver.rs` compiles as a shared library. Functions that are not here are added
//! by the test and return success.
//!
//! `--cfg` selects a fault: `old` (CUDA 11.8), `bare` (a driver that lacks functions), `no_gpu`, `failing` (a kernel fails
//! and no module can be loaded).

use std::{
    alloc::{Layout, alloc_zeroed},
    os::raw::{c_char, c_int, c_uint, c_void},
};

const GIB: usize = 1 << 30;
const SUCCESS: c_uint = 0;

#[no_mangle]
pub unsafe extern "system" fn cuDriverGetVersion(version: *mut c_int) -> c_uint {
    *version = if cfg!(old) { 11_080 } else { 12_090 };
    SUCCESS
}

#[cfg(not(bare))]
pub mod whole {
    use super::*;

    #[no_mangle]
    pub extern "system" fn cuInit(_flags: c_uint) -> c_uint {
        if cfg!(no_gpu) { 100 } else { SUCCESS }
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuGetErrorName(status: c_uint, text: *mut *const c_char) -> c_uint {
        let known: &[u8] = match status {
            209 => b"CUDA_ERROR_NO_BINARY_FOR_GPU\0",
            700 => b"CUDA_ERROR_ILLEGAL_ADDRESS\0",
            _ => return 1,
        };
        *text = known.as_ptr().cast();
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuGetErrorString(_status: c_uint, text: *mut *const c_char) -> c_uint {
        *text = b"as the stand-in was told\0".as_ptr().cast();
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuDeviceGetCount(count: *mut c_int) -> c_uint {
        *count = 1;
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_uint {
        *device = ordinal;
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) -> c_uint {
        let text = b"Stand-in\0";
        assert!(length as usize > text.len());
        name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuDeviceGetAttribute(value: *mut c_int, which: c_uint, _device: c_int) -> c_uint {
        *value = match which {
            16 => 132,
            75 => 9,
            76 => 0,
            97 => 227 << 10,
            _ => 1,
        };
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> c_uint {
        *bytes = 8 * GIB;
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_uint {
        (*free, *total) = (GIB, 8 * GIB);
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_uint {
        if bytes > GIB {
            return 2;
        }
        let layout = Layout::from_size_align(bytes, 256).unwrap();
        *address = alloc_zeroed(layout) as u64;
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize) -> c_uint {
        (to as *mut u8).copy_from_nonoverlapping(from.cast(), bytes);
        SUCCESS
    }

    #[no_mangle]
    pub unsafe extern "system" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize) -> c_uint {
        to.cast::<u8>().copy_from_nonoverlapping(from as *const u8, bytes);
        SUCCESS
    }

    #[no_mangle]
    pub extern "system" fn cuStreamSynchronize(_stream: *mut c_void) -> c_uint {
        if cfg!(failing) { 700 } else { SUCCESS }
    }

    #[no_mangle]
    pub extern "system" fn cuModuleLoadData(_module: *mut *mut c_void, _image: *const c_void) -> c_uint {
        if cfg!(failing) { 209 } else { SUCCESS }
    }
}
