"""Limits of control groups, read from folders laid out as the kernel lays them out."""

from pathlib import Path

import pytest

from ringserve.server.cgroup import cpu_quota, memory_limit_bytes

V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 {cpu} /sys/fs/cgroup/cpu,cpuacct rw master:11 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {memory} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
OTHERS = "23 27 0:22 / /sys rw - sysfs sysfs rw\nnonsense\n"


def machine(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mountinfo": OTHERS + mounts, "proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("content", "quota"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("", None),
        ("a b", None),
        ("1 0", None),
        ("1 2 3", None),
    ],
)
def test_a_quota_is_time_in_a_period(tmp_path: Path, content: str, quota: float | None) -> None:
    assert cpu_quota(machine(tmp_path, V2, "0::/\n", {"sys/fs/cgroup/cpu.max": content})) == quota


def test_the_smallest_limit_from_the_own_group_up_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu.max": "max 100000",
        "sys/fs/cgroup/kubepods/cpu.max": "800000 100000",
        "sys/fs/cgroup/kubepods/pod/cpu.max": "200000 100000",
        "sys/fs/cgroup/kubepods/pod/container/cpu.max": "max 100000",
        "sys/fs/cgroup/kubepods/other/cpu.max": "100000 100000",
        "sys/fs/cgroup/kubepods/memory.max": "1073741824\n",
        "sys/fs/cgroup/kubepods/pod/memory.max": "max\n",
        "sys/fs/cgroup/kubepods/pod/container/memory.max": "2147483648\n",
    }
    root = machine(tmp_path, V2, "0::/kubepods/pod/container\n", files)
    assert cpu_quota(root) == 2.0
    assert memory_limit_bytes(root) == 1 << 30


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    groups = "12:pids:/elsewhere\n5:cpu,cpuacct:/slice/job\n4:memory:/job\n1:name=systemd:/x\n"
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_quota_us": "300000\n",
        "sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/slice/job/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/slice/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "536870912\n",
    }
    root = machine(tmp_path, V1.format(cpu="/", memory="/"), groups, files)
    assert cpu_quota(root) == 3.0
    assert memory_limit_bytes(root) == 512 << 20


def test_a_container_sees_its_own_group_as_the_root_of_the_mount(tmp_path: Path) -> None:
    """Docker with version 1: the names are the host's, the mount begins at the container's group."""
    groups = "5:cpu,cpuacct:/docker/0123\n4:memory:/docker/0123/inner\n"
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/inner/memory.limit_in_bytes": "700\n",
    }
    root = machine(tmp_path, V1.format(cpu="/docker/0123", memory="/docker/0123"), groups, files)
    assert cpu_quota(root) == 1.5
    assert memory_limit_bytes(root) == 700


@pytest.mark.parametrize("group", ["/../../somewhere", "/a/../../b", "/not/below/the/mount"])
def test_a_group_outside_of_what_is_mounted_is_the_root_of_the_mount(tmp_path: Path, group: str) -> None:
    mount = V2 if ".." in group else V2.replace("0:26 / ", "0:26 /docker/0123 ")
    assert cpu_quota(machine(tmp_path, mount, f"0::{group}\n", {"sys/fs/cgroup/cpu.max": "200000 100000"})) == 2.0


def test_both_versions_may_be_there_at_once(tmp_path: Path) -> None:
    mounts = V1.format(cpu="/", memory="/") + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n",
        "sys/fs/cgroup/unified/memory.max": "2000\n",
    }
    root = machine(tmp_path, mounts, "4:memory:/\n0::/\n", files)
    assert memory_limit_bytes(root) == 2000
    assert cpu_quota(root) is None


def test_a_mount_point_may_have_blanks_in_its_name(tmp_path: Path) -> None:
    mounts = V2.replace("/sys/fs/cgroup", "/control\\040groups")
    assert memory_limit_bytes(machine(tmp_path, mounts, "0::/\n", {"control groups/memory.max": "77\n"})) == 77


@pytest.mark.parametrize("groups", ["", "nonsense\n", "0::\n", ":\n"])
def test_without_control_groups_there_is_no_limit(tmp_path: Path, groups: str) -> None:
    root = machine(tmp_path, "", groups, {})
    assert cpu_quota(root) is None
    assert memory_limit_bytes(root) is None


def test_without_a_proc_there_is_no_limit(tmp_path: Path) -> None:
    assert (cpu_quota(tmp_path), memory_limit_bytes(tmp_path)) == (None, None)


def test_this_machine_is_read_without_an_error() -> None:
    for found in (cpu_quota(), memory_limit_bytes()):
        assert found is None or found > 0
