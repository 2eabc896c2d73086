"""A few images per breed: all breeds, the same ones every time, as links."""

from launch.rehearsal.staging import link_subset


def test_a_few_of_every_breed(dog_tree, tmp_path):
    names = link_subset(dog_tree, tmp_path / "data", 2)
    breeds = {path.relative_to(dog_tree) for path in dog_tree.glob("*/*")}
    assert len(names) == 2 * len(breeds)
    for breed in breeds:
        every = sorted(path.name for path in (dog_tree / breed).iterdir())
        linked = sorted((tmp_path / "data" / breed).iterdir())
        assert [path.name for path in linked] == every[:2]
        assert all(path.is_symlink() and path.resolve().parent == (dog_tree / breed).resolve() for path in linked)
    assert names == link_subset(dog_tree, tmp_path / "again", 2)


def test_all_of_them_but_nothing_hidden(dog_tree, tmp_path, write_tree):
    root = write_tree(tmp_path / "dogs")
    (root / "train" / ".DS_Store").write_text("")
    (root / ".git").mkdir()
    names = link_subset(root, tmp_path / "data", None)
    assert sorted(names) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
