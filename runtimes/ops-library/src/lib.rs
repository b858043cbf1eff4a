//! `libdensessm_ops`: densessm's operators for any ONNX Runtime, from any language.
//!
//! ONNX Runtime calls [`RegisterCustomOps`] when a session's options name the library
//! (`SessionOptions.register_custom_ops_library` in Python). Sessions with the CUDA provider use the kernels for NVIDIA
//! GPUs; without one, nothing of CUDA is loaded. The operators live until the process ends, since sessions
//! may use them until then.

use ort::{AsPointer, operator::OperatorDomain, sys};
use std::{
    ffi::{CStr, CString},
    panic::catch_unwind,
    ptr,
    sync::{Mutex, OnceLock, PoisonError},
};

/// The domain, which is made once per process.
struct Domain(OperatorDomain);

// SAFETY: ONNX Runtime only reads a domain after it has been made.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

/// The first version of ONNX Runtime's interface, which is enough to report an error.
const FIRST_VERSION: u32 = 1;

/// Adds the operators to a session's options. Returns null, or a status with the reason for the failure.
///
/// # Safety
/// ONNX Runtime calls this, with its own options and interface.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "ONNX Runtime looks the name up")]
pub unsafe extern "system" fn RegisterCustomOps(
    options: *mut sys::OrtSessionOptions,
    base: *const sys::OrtApiBase,
) -> sys::OrtStatusPtr {
    // SAFETY: the caller guarantees it.
    let registered = catch_unwind(|| unsafe { register(options, base) });
    let problem = match registered {
        Ok(Ok(())) => return sys::OrtStatusPtr(ptr::null_mut()),
        Ok(Err(problem)) => problem,
        Err(_) => "panicked; please report this".to_owned(),
    };
    let message = CString::new(format!("libdensessm_ops: {problem}")).unwrap_or_default();
    // SAFETY: the base is ONNX Runtime's; every version of the interface begins with the first one.
    unsafe {
        let Some(base) = base.as_ref() else { return sys::OrtStatusPtr(ptr::null_mut()) };
        let Some(api) = (base.GetApi)(FIRST_VERSION).as_ref() else { return sys::OrtStatusPtr(ptr::null_mut()) };
        (api.CreateStatus)(sys::OrtErrorCode::ORT_FAIL, message.as_ptr())
    }
}

/// # Safety
/// As for [`RegisterCustomOps`].
unsafe fn register(options: *mut sys::OrtSessionOptions, base: *const sys::OrtApiBase) -> Result<(), String> {
    static DOMAIN: OnceLock<Domain> = OnceLock::new();
    static MAKING: Mutex<()> = Mutex::new(());

    // SAFETY: a base is a static table of ONNX Runtime's.
    let base = unsafe { base.as_ref() }.ok_or("expected ONNX Runtime's interface, got null")?;
    let version = sys::ORT_API_VERSION;
    // SAFETY: the base is alive; what it returns is null or a static table of that version.
    let api = unsafe { (base.GetApi)(version).as_ref() };
    let Some(api) = api else {
        // SAFETY: the base is alive, and returns a static text.
        let got = unsafe { CStr::from_ptr((base.GetVersionString)()) }.to_string_lossy();
        return Err(format!("expected ONNX Runtime 1.{version} or newer, got {got}"));
    };
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let domain = match DOMAIN.get() {
        Some(domain) => domain,
        None => {
            // Returns false if an earlier call has set it.
            ort::set_api(api.clone());
            let domain = densessm_ort_operators::domain().map_err(|error| error.to_string())?;
            DOMAIN.get_or_init(|| Domain(domain))
        }
    };
    // SAFETY: the options are ONNX Runtime's own, and the domain lives as long as the process.
    let added = unsafe { ort::Error::result_from_status((api.AddCustomOpDomain)(options, domain.0.ptr().cast_mut())) };
    added.map_err(|error| error.to_string())
}
