import itertools
import logging
import os
import unicodedata

import pytest

from scripts.common.names import (
    MAX_NAME_BYTES,
    is_dicom,
    is_nifti,
    name_path,
    printable,
    safe_name,
    stem,
    unique_names,
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.nii.gz", "b"),
        ("b.NII", "b"),
        ("x/1.2.840.113", "1.2.840.113"),
        ("x/series/", "series"),
        ("v1.2.nii", "v1.2"),
        ("a/b.PNG", "b"),
    ],
)
def test_stem_drops_folder_and_suffix_of_an_image_only(path, name):
    assert stem(path) == name


def test_repeated_stems_get_their_folders_and_then_numbers():
    paths = ["/d/x/ct.nii", "/d/y/ct.nii", "/d/y/ct.nii.gz", "/d/pet.nii"]
    assert unique_names(paths) == ["x_ct", "y_ct", "y_ct_2", "pet"]


SAFE_NAMES = [
    "p1",
    "1.2.840.113",
    "a b",
    "a,b",
    "it's",
    "a$b$",
    "100%",
    "été",
    "患者1",
    "x" * MAX_NAME_BYTES,
    "console",
    "com10",
    "a-b=c+d@e",
]


@pytest.mark.parametrize("name", SAFE_NAMES)
def test_safe_name_stays_itself(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a\nb\tc", "a_b_c"),
        ('a"b', "a_b"),
        (r"..\..\etc", "__.._etc"),
        ("/etc/passwd", "_etc_passwd"),
        (r"a$\frac{$", "a$_frac{$"),
        ("a:b*c?d<e>f|g", "a_b_c_d_e_f_g"),
        (os.fsdecode(b"p9\xe9"), "p9_"),
        ("a\u202eb\u200bc", "a_b_c"),
        ("\ufeffa", "_a"),
        (" a. ", "_a_"),
        ("-rf", "_rf"),
        (".hidden", "_hidden"),
        ("=1+1", "_1+1"),
        ("@cmd", "_cmd"),
        ("CON", "_CON"),
        ("nul.v2", "_nul.v2"),
        ("Com¹", "_Com¹"),
        ("", "_"),
        ("..", "_"),
        ("\0", "_"),
    ],
)
def test_unsafe_name_is_made_safe(name, safe):
    assert safe_name(name) == safe
    assert safe_name(safe) == safe


@pytest.mark.parametrize("letter", ["x", "é", "患", "\U0001f600"])
def test_long_names_are_cut_to_names_that_differ(letter):
    names = [safe_name(letter * 250 + end) for end in ("", "a", "b")]
    assert len(set(names)) == 3
    for name in names:
        assert name.startswith(letter * 40)
        assert MAX_NAME_BYTES - 4 < len(f"{name}".encode()) <= MAX_NAME_BYTES
        assert len(f"{name}_12345_cleaned.nii.gz".encode()) <= 255


def test_every_character_gives_a_name_that_can_be_written_and_printed():
    for start in range(0, 0x110000, 97):
        name = safe_name(f"a{''.join(map(chr, range(start, min(start + 50, 0x110000))))}b")
        assert name.isprintable()
        assert len(name.encode()) <= MAX_NAME_BYTES


def test_names_that_a_file_system_takes_for_one_are_told_apart():
    composed, decomposed = (unicodedata.normalize(form, "/d/été.nii") for form in ("NFC", "NFD"))
    assert unique_names(["/d/A.nii", "/d/a.nii", "/d/ß.nii", "/d/SS.nii"]) == ["A", "a_2", "ß", "SS_2"]
    assert unique_names([composed, decomposed])[0] == "été"
    assert unique_names([composed, decomposed])[1].endswith("_2")


def test_safe_name_is_kept_where_another_becomes_the_same(caplog):
    caplog.set_level(logging.INFO)
    assert unique_names(["/d/a?.nii", "/d/a_.nii", "/d/a\n.nii"]) == ["a__2", "a_", "a__3"]
    assert caplog.messages == ["/d/a?.nii: its case is named a__2", r"/d/a\n.nii: its case is named a__3"]


def test_folders_in_names_are_made_safe():
    assert unique_names(["/d/x:/ct.nii", "/d/x?/ct.nii", f"/d/{'y' * 240}/ct.nii"])[:2] == ["x__ct", "x__ct_2"]


def test_names_do_not_depend_on_what_else_is_listed_if_they_are_safe():
    names = [name for name in SAFE_NAMES if name.isascii()]
    for some in itertools.combinations(names, 2):
        assert unique_names([f"/d/{name}.nii" for name in some]) == list(some)


def test_many_equal_names_are_numbered_in_time():
    names = unique_names([f"/d/a{chr(0xE000 + n)}.nii" for n in range(6000)])
    assert names[0] == "a_"
    assert names[-1] == "a__6000"


def test_printable_path_is_one_line_of_utf8():
    assert printable("/d/été 患者.nii") == "/d/été 患者.nii"
    assert printable(os.fsdecode(b"/d/p9\xe9\n\t.nii")) == r"/d/p9\udce9\n\t.nii"
    assert printable(os.fsdecode(b"\xff")).encode() == rb"\udcff"


def test_same_path_gets_the_same_name():
    assert unique_names(["/d/a.nii", "/d/a.nii"]) == ["a", "a"]


def test_no_paths_have_no_names():
    assert unique_names([]) == []


def test_name_that_looks_numbered_is_not_given_twice():
    assert len(set(unique_names(["/d/x_a.nii", "/d/x/a.nii", "/d/y/a.nii"]))) == 3


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("a/ct.nii.gz", "a/ct.nii.gz"),
        (["a/p-1-t1n.nii.gz", "a/p-1-t1c.nii.gz", "a/p-1-t2w.nii.gz", "a/p-1-t2f.nii.gz"], "a/p-1"),
        (["a/p_1_t1.nii", "a/p_1_t1ce.nii", "a/p_1_t2.nii", "a/p_1_flair.nii"], "a/p_1"),
        (["a/p1/t1n.nii.gz", "a/p1/t1c.nii.gz"], "a/p1"),
        (["a/p1/t1.nii", "a/p1/flair.nii"], "a/p1"),
        (["a/one-t1n.nii.gz"], "a/one-t1n"),
    ],
)
def test_image_in_several_files_is_named_after_their_common_beginning(image, path):
    assert name_path(image) == path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii", True), ("a.nii.gz", True), ("A.NII.GZ", True), ("._a.nii.gz", False), ("a.gz", False), ("a.mha", False)],
)
def test_nifti_is_known_by_its_name_and_hidden_files_are_ignored(tmp_path, name, expected):
    assert is_nifti(tmp_path / name) is expected


@pytest.mark.parametrize(
    ("content", "expected"), [(bytes(128) + b"DICM" + bytes(9), True), (b"DICM", False), (b"", False)]
)
def test_dicom_is_known_by_its_prefix(tmp_path, content, expected):
    (tmp_path / "slice").write_bytes(content)
    assert is_dicom(tmp_path / "slice") is expected


def test_index_of_a_cd_folders_and_pipes_are_no_dicom_files(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(tmp_path / "pipe")
    assert [is_dicom(path) for path in (tmp_path, *tmp_path.iterdir())] == [False, False, False]
