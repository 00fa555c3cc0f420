//! What Windows says about itself, and what it means for a server.
//!
//! There is little to adjust: sockets are not limited by a number per process, and the completion
//! port is a part of every Windows. What has to be told is which Windows it is, and whether it is
//! one at all.

use super::finding::{Finding, bytes_text};

const SECTION: &str = "Machine";

/// Everything that is looked at. What could not be read is `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Major, minor, build.
    pub(crate) version: Option<[u32; 3]>,
    /// The version of Wine, where this is not Windows but Wine.
    pub(crate) wine: Option<String>,
    pub(crate) processors: Option<usize>,
    pub(crate) memory_bytes: Option<u64>,
}

/// Judges everything, in the order in which it is shown.
pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let version =
        facts.version.map(|[major, minor, build]| format!("Windows {major}.{minor}.{build}"));
    let processors = facts.processors.unwrap_or(1);
    let system = match &facts.wine {
        None => Finding::named(SECTION, "system", version),
        Some(wine) => {
            let version = version.unwrap_or_else(|| "Windows".to_owned());
            Finding::new(SECTION, "system", format!("Wine {wine}, which passes for {version}"))
                .limited_if(
                    true,
                    "Wine is not Windows: see the rules it breaks in docs/semantics.md",
                )
        }
    };
    let processors = format!("{processors}, so concurrency 0 means {processors}");
    vec![
        system,
        Finding::new(SECTION, "processors", processors),
        Finding::named(SECTION, "memory", facts.memory_bytes.map(bytes_text)),
    ]
}

#[cfg(windows)]
impl Facts {
    /// Asks the system.
    pub(crate) fn read() -> Self {
        Self {
            version: calls::version(),
            wine: calls::wine_version(),
            processors: std::thread::available_parallelism().ok().map(usize::from),
            memory_bytes: calls::memory_bytes(),
        }
    }
}

/// The raw calls.
#[cfg(windows)]
mod calls {
    use std::ffi::{CStr, c_char};

    use windows_sys::Wdk::System::SystemServices::RtlGetVersion;
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
    use windows_sys::Win32::System::SystemInformation::{
        GlobalMemoryStatusEx, MEMORYSTATUSEX, OSVERSIONINFOW,
    };
    use windows_sys::w;

    /// Microsoft Learn, "RtlGetVersion function": the true version, whatever the manifest says.
    pub(super) fn version() -> Option<[u32; 3]> {
        // SAFETY: the structure is plain integers, for which zero is a value.
        let mut version: OSVERSIONINFOW = unsafe { std::mem::zeroed() };
        version.dwOSVersionInfoSize = size_of::<OSVERSIONINFOW>() as u32;
        // SAFETY: the pointer is to a structure of the size that stands in it.
        let status = unsafe { RtlGetVersion(&mut version) };
        let numbers = [version.dwMajorVersion, version.dwMinorVersion, version.dwBuildNumber];
        (status == 0).then_some(numbers)
    }

    /// Wine's ntdll exports `wine_get_version`, for programs that want to tell it from Windows.
    pub(super) fn wine_version() -> Option<String> {
        // SAFETY: ntdll is loaded into every process and is never unloaded.
        let ntdll = unsafe { GetModuleHandleW(w!("ntdll.dll")) };
        if ntdll.is_null() {
            return None;
        }
        // SAFETY: the module's handle is valid, the name ends with a zero.
        let function = unsafe { GetProcAddress(ntdll, c"wine_get_version".as_ptr().cast()) }?;
        // SAFETY: where it exists it has this type, by Wine's documentation.
        let function: extern "C" fn() -> *const c_char = unsafe { std::mem::transmute(function) };
        // SAFETY: it gives a text that is part of the library.
        let version = unsafe { CStr::from_ptr(function()) };
        Some(version.to_string_lossy().into_owned())
    }

    /// Microsoft Learn, "GlobalMemoryStatusEx function".
    pub(super) fn memory_bytes() -> Option<u64> {
        // SAFETY: the structure is plain integers, for which zero is a value.
        let mut status: MEMORYSTATUSEX = unsafe { std::mem::zeroed() };
        status.dwLength = size_of::<MEMORYSTATUSEX>() as u32;
        // SAFETY: the pointer is to a structure of the size that stands in it.
        let done = unsafe { GlobalMemoryStatusEx(&mut status) };
        (done != 0).then_some(status.ullTotalPhys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wine_is_told_from_windows() {
        let windows = Facts { version: Some([10, 0, 22_631]), ..Facts::default() };
        let findings = judge(&windows);
        assert_eq!(findings[0].value, "Windows 10.0.22631");
        assert!(findings.iter().all(|finding| finding.advice.is_none()));
        let wine = Facts { wine: Some("8.0".to_owned()), ..windows };
        let findings = judge(&wine);
        assert_eq!(findings[0].value, "Wine 8.0, which passes for Windows 10.0.22631");
        assert!(findings[0].advice.as_ref().unwrap().contains("docs/semantics.md"));
    }
}
