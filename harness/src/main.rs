//! The binary `wattle`: see [`wattle::run`].

use std::process::ExitCode;

fn main() -> ExitCode {
    silence_device_selection();
    wattle::run(std::env::args_os())
}

/// Without a desktop session Mesa's device selection layer prints an error of its Wayland client whenever Vulkan
/// adapters are listed. Switched off, nothing is lost: it asks the compositor which adapter it prefers.
fn silence_device_selection() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: this is the first thing that main does: no other thread reads the environment yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
