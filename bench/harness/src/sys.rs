//! The few system calls of the harness that the standard library lacks.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// Turns a negative result into the thread's last error.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// CPU time of one process: all its threads, also ended ones, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The clock of another process.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: `clock` is valid for the call.
        let code = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        Ok(Self(clock))
    }

    /// The clock of the calling thread.
    pub fn of_this_thread() -> Self {
        Self(libc::CLOCK_THREAD_CPUTIME_ID)
    }

    /// CPU time used so far.
    pub fn now(self) -> io::Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for the call.
        check(unsafe { libc::clock_gettime(self.0, &mut time) })?;
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

/// CPU time that all processes of the machine, and its interrupts, have used.
/// Its resolution is that of /proc/stat: 10 ms.
pub fn machine_cpu_time() -> io::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let busy: u64 = line
        .split_whitespace()
        .skip(1)
        .take(8) // user nice system idle iowait irq softirq steal
        .enumerate()
        .filter(|(column, _)| ![3, 4].contains(column))
        .filter_map(|(_, ticks)| ticks.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(busy * 10))
}

/// An epoll set whose entries carry an index.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What one wait reported: the entry's index and its flags.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The index that the descriptor was added with.
    pub index: usize,
    /// EPOLLIN and so on.
    pub flags: u32,
}

impl Event {
    /// Whether the peer closed or reset the connection.
    pub fn is_end(self) -> bool {
        self.flags & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

impl Epoll {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is new and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; 256];
        Ok(Self { fd, events })
    }

    /// Adds a descriptor, edge-triggered for both directions.
    pub fn add(&self, fd: RawFd, index: usize) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: interest as u32, u64: index as u64 };
        // SAFETY: `event` is valid for the call, which copies it.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event)
        })?;
        Ok(())
    }

    /// Waits for events, at most for `timeout`, with nanosecond resolution.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
        };
        // SAFETY: the events and the timeout are valid for the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as libc::c_int,
                &timeout,
                ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        match check(result as libc::c_int) {
            Ok(count) => Ok(count as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Event number `position` of the last wait.
    pub fn event(&self, position: usize) -> Event {
        let event = self.events[position];
        Event { index: event.u64 as usize, flags: event.events }
    }
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
    }
    Ok(limit.rlim_cur)
}

/// Makes timeouts of this thread end on time: the default slack of 50 us is
/// as large as what is measured.
pub fn sharpen_timers() {
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0, 0, 0) };
}

/// Leaves the choice of a bound socket's port to `connect`, when the
/// destination is known: then ports are scarce only per destination.
pub fn choose_port_at_connect(socket: &impl AsRawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is valid for the call, and its size stated.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Lets the calling thread run before all ordinary ones, if that is allowed,
/// so that what it times is the servers' delay and not its own. Processes it
/// starts do not inherit this.
pub fn run_first() -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameters are valid for the call.
    unsafe { libc::sched_setscheduler(0, policy, &parameters) == 0 }
}

/// Ends what [`run_first`] began.
pub fn run_as_others() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are valid for the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &parameters) };
}

/// Sends a signal to a process that this harness started.
pub fn signal(pid: u32, signal: libc::c_int) {
    // SAFETY: no pointers.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Which CPUs the load engine and the servers run on.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The load engine has the last CPU for itself, the servers have the
    /// others, as if the clients were on another machine. Else the scheduler
    /// now puts a server beside the client and now on the client's CPU, which
    /// changes its cost more than all that is to be measured.
    Apart,
    /// Wherever the scheduler puts them.
    Free,
}

impl Placement {
    /// Applies to the calling thread: the load engine's part.
    pub fn place_load(self) -> io::Result<()> {
        let cpus = allowed_cpus()?;
        match (self, cpus.as_slice()) {
            (Self::Apart, [_, .., last]) => set_affinity(&[*last]),
            _ => Ok(()),
        }
    }

    /// The CPUs for servers; call it before [`place_load`](Self::place_load).
    pub fn server_cpus(self) -> io::Result<Vec<usize>> {
        let mut cpus = allowed_cpus()?;
        if self == Self::Apart && cpus.len() > 1 {
            cpus.pop();
        }
        Ok(cpus)
    }
}

/// The CPUs that the calling thread may run on, in order.
fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a CPU set is plain bits, for which zero is a value; the call
    // writes at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        check(libc::sched_getaffinity(0, size_of_val(&set), &mut set))?;
        set
    };
    let all = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: the number is below CPU_SETSIZE.
    Ok(all.filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: as in `allowed_cpus`, whose numbers these are.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for &cpu in cpus {
            libc::CPU_SET(cpu, &mut set);
        }
        check(libc::sched_setaffinity(0, size_of_val(&set), &set))?;
    }
    Ok(())
}

/// The timer slack that processes have by default.
const DEFAULT_SLACK_NS: u64 = 50_000;

/// For a new process, after fork: it runs on the given CPUs; the kernel ends
/// it when its parent ends, so that an interrupted harness leaves no servers
/// behind; and it does not inherit the harness's sharp timers.
pub fn prepare_child(cpus: &[usize]) -> io::Result<()> {
    set_affinity(cpus)?;
    // SAFETY: no pointers.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as u64, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_TIMERSLACK, DEFAULT_SLACK_NS, 0, 0, 0))?;
    }
    Ok(())
}

/// Kernel release and number of CPUs, for the report.
pub fn machine() -> (String, usize) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    (release.trim().to_owned(), cpus)
}
