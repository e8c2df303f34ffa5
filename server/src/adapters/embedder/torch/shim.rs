//! libtorch's functions with C linkage, which are for code compiled ahead of time: some of what tch has
//! no binding for is there.

use std::ffi::{CStr, c_char, c_void};

use tch::Tensor;

/// `AtenTensorHandle` of `torch/csrc/inductor/aoti_torch/c/shim.h`: an `at::Tensor *`, which
/// is also what tch's pointers are.
pub type Handle = *mut c_void;

unsafe extern "C" {
    fn aoti_torch_call_dispatcher(
        name: *const c_char,
        overload: *const c_char,
        stack: *mut u64,
    ) -> i32;
}

/// Calls an operator of a tensor and an option, whose result is a tensor.
///
/// # Safety
/// `name` must be such an operator, without overloads. The option is null, or points to a value that
/// was made with C++'s `new`, which the call takes.
pub unsafe fn call(name: &CStr, tensor: &Tensor, option: *mut c_void) -> Option<Tensor> {
    let mut owned_argument = tensor.shallow_clone();
    let mut stack = [owned_argument.as_mut_ptr() as u64, option as u64];
    // The call takes it, and leaves its result at the head of the stack.
    std::mem::forget(owned_argument);
    // SAFETY: the caller's promise.
    let status =
        unsafe { aoti_torch_call_dispatcher(name.as_ptr(), c"".as_ptr(), stack.as_mut_ptr()) };
    owned(status, stack[0] as Handle)
}

pub fn handle(tensor: &Tensor) -> Handle {
    tensor.as_ptr().cast_mut().cast()
}

/// The tensor that a function made, by its status and result. What went wrong, libtorch writes to the
/// standard error.
pub fn owned(status: i32, result: Handle) -> Option<Tensor> {
    // SAFETY: a tensor made with `new`, as tch's own are, that nobody else holds.
    (status == 0 && !result.is_null()).then(|| unsafe { Tensor::from_ptr(result.cast()) })
}
