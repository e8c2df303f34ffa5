//! oneDNN's linear layer with packed weights. tch has no binding for it because it is no operator
//! of libtorch's own.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use tch::{TchError, Tensor};

use super::super::shim::{self, Handle, handle, owned};
use super::Linear;
use super::quantized::Quantized;

unsafe extern "C" {
    fn aoti_torch_cpu__linear_pointwise(
        x: Handle,
        weight: Handle,
        bias: *const Handle,
        attribute: *const c_char,
        scalars: *const *const f64,
        scalars_len: i64,
        algorithm: *const *const c_char,
        result: *mut Handle,
    ) -> i32;
    fn aoti_torch_cpu__linear_pointwise_binary(
        x: Handle,
        other: Handle,
        weight: Handle,
        bias: *const Handle,
        attribute: *const c_char,
        result: *mut Handle,
    ) -> i32;
    fn aoti_torch_cpu__qlinear_pointwise_tensor(
        x: Handle,
        x_scale: Handle,
        x_zero_point: Handle,
        weight: Handle,
        weight_scales: Handle,
        weight_zero_points: Handle,
        bias: *const Handle,
        result_scale: f64,
        result_zero_point: i64,
        result_kind: *const i32,
        then: *const c_char,
        scalars: *const *const f64,
        scalars_len: i64,
        algorithm: *const c_char,
        result: *mut Handle,
    ) -> i32;
    fn aoti_torch_cpu__qlinear_pointwise_binary_tensor(
        x: Handle,
        x_scale: Handle,
        x_zero_point: Handle,
        weight: Handle,
        weight_scales: Handle,
        weight_zero_points: Handle,
        other: *const Handle,
        bias: *const Handle,
        result_scale: f64,
        result_zero_point: i64,
        result_kind: *const i32,
        other_scale: f64,
        other_zero_point: i64,
        then: *const c_char,
        alpha: f64,
        unary: *const c_char,
        scalars: *const *const f64,
        scalars_len: i64,
        algorithm: *const c_char,
        result: *mut Handle,
    ) -> i32;
    /// `operator new(std::size_t)`, for a value that libtorch frees with `delete`.
    #[link_name = "_Znwm"]
    fn operator_new(size: usize) -> *mut c_void;
}

/// As in `c10::ScalarType`.
const UINT8: i32 = 0;
const FLOAT: i32 = 6;

/// The number of rows for which oneDNN chooses the layout; measured to be the best or within
/// a few percent of it from 1 to 4096 rows.
const ROWS: u64 = 256;

/// A weight in oneDNN's layout, or `None` where this libtorch cannot make one.
pub fn pack(weight: &Tensor) -> Option<Tensor> {
    if !tch::utils::has_mkldnn() {
        return None;
    }
    // SAFETY: the operator is `_reorder_linear_weight(Tensor, int? batch_size) -> Tensor`, and the
    // number comes from `operator new`.
    unsafe {
        let rows = operator_new(size_of::<u64>()).cast::<u64>();
        rows.write(ROWS);
        shim::call(c"mkldnn::_reorder_linear_weight", weight, rows.cast())
    }
}

pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, then: &CStr) -> Result<Tensor, TchError> {
    let (exact, bias) = (c"none".as_ptr(), handle(bias));
    let mut result = ptr::null_mut();
    // SAFETY: the handles are tensors that outlive the call, which only reads them; there are
    // no scalars; on success `result` is a new tensor that we own.
    let status = unsafe {
        aoti_torch_cpu__linear_pointwise(
            handle(x),
            handle(weight),
            &raw const bias,
            then.as_ptr(),
            ptr::null(),
            0,
            &raw const exact,
            &raw mut result,
        )
    };
    owned_of(status, result)
}

pub fn linear_add(
    x: &Tensor,
    other: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor, TchError> {
    let (bias, mut result) = (handle(bias), ptr::null_mut());
    // SAFETY: as in `linear`.
    let status = unsafe {
        aoti_torch_cpu__linear_pointwise_binary(
            handle(x),
            handle(other),
            handle(weight),
            &raw const bias,
            c"add".as_ptr(),
            &raw mut result,
        )
    };
    owned_of(status, result)
}

/// A weight of eight bits in oneDNN's layout.
pub fn pack_int8(weight: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: the operator is `qlinear_prepack(Tensor weight, int[]? x_shape) -> Tensor`.
    let packed = unsafe { shim::call(c"onednn::qlinear_prepack", weight, ptr::null_mut()) };
    packed.ok_or_else(failed)
}

/// What both forms of the layer of eight bits take first, in their order.
fn operands(x: &Tensor, layer: &Linear, quantized: &Quantized) -> [Handle; 6] {
    [
        x,
        &quantized.input.step_tensor,
        &quantized.input.zero_point_tensor,
        &layer.weight,
        &quantized.weight_scales,
        &quantized.weight_zero_points,
    ]
    .map(handle)
}

pub fn linear_int8(
    x: &Tensor,
    layer: &Linear,
    quantized: &Quantized,
    then: &CStr,
) -> Result<Tensor, TchError> {
    let [input, step_of_input, zero_point_of_input, weight, scales, zero_points] =
        operands(x, layer, quantized);
    let (bias, mut result) = (handle(&layer.bias), ptr::null_mut());
    let (kind, step, zero_point) = match &quantized.output {
        Some(scale) => (UINT8, scale.step, scale.zero_point),
        None => (FLOAT, 1.0, 0),
    };
    // SAFETY: as in `linear`; the pointers are to values on this stack.
    let status = unsafe {
        aoti_torch_cpu__qlinear_pointwise_tensor(
            input,
            step_of_input,
            zero_point_of_input,
            weight,
            scales,
            zero_points,
            &raw const bias,
            step,
            zero_point,
            &raw const kind,
            then.as_ptr(),
            ptr::null(),
            0,
            c"none".as_ptr(),
            &raw mut result,
        )
    };
    owned_of(status, result)
}

pub fn linear_int8_add(
    x: &Tensor,
    other: &Tensor,
    layer: &Linear,
    quantized: &Quantized,
) -> Result<Tensor, TchError> {
    let [input, step_of_input, zero_point_of_input, weight, scales, zero_points] =
        operands(x, layer, quantized);
    let (bias, other, mut result) = (handle(&layer.bias), handle(other), ptr::null_mut());
    let kind = FLOAT;
    // SAFETY: as in `linear_int8`.
    let status = unsafe {
        aoti_torch_cpu__qlinear_pointwise_binary_tensor(
            input,
            step_of_input,
            zero_point_of_input,
            weight,
            scales,
            zero_points,
            &raw const other,
            &raw const bias,
            1.0,
            0,
            &raw const kind,
            1.0,
            0,
            c"add".as_ptr(),
            1.0,
            c"none".as_ptr(),
            ptr::null(),
            0,
            c"".as_ptr(),
            &raw mut result,
        )
    };
    owned_of(status, result)
}

fn owned_of(status: i32, result: Handle) -> Result<Tensor, TchError> {
    owned(status, result).ok_or_else(failed)
}

fn failed() -> TchError {
    TchError::Torch("oneDNN's linear layer failed".to_owned())
}
