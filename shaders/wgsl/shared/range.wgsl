// The range of f16.

// Numbers beyond it become its largest; what is not finite stays what it is.
fn in_range(v: vec4f) -> vec4f {
    let largest = vec4f(65504.0);
    let finite = (bitcast<vec4u>(v) & vec4u(0x7fffffffu)) < vec4u(0x7f800000u);
    return select(v, clamp(v, -largest, largest), finite);
}
