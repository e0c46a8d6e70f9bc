defmodule Snakepit.SharedMemory.TestDir do
  @moduledoc false
  # Directories of a test's own on a memory file system, that must be empty in the end.

  @doc "A fresh directory under /dev/shm, or under the system's temporary directory without one."
  def create!(label) do
    base = if File.dir?("/dev/shm"), do: "/dev/shm", else: System.tmp_dir!()
    unique = System.unique_integer([:positive])
    dir = Path.join(base, "snakepit-test-#{System.pid()}-#{label}-#{unique}")
    File.mkdir!(dir)
    dir
  end

  @doc "What is left of segments; the participants file belongs to the namespace, not to one."
  def leftovers(dir) do
    dir |> File.ls!() |> Enum.reject(&String.ends_with?(&1, ".participants")) |> Enum.sort()
  end

  @doc "Removes a directory in which no segment may be left."
  def remove_empty!(dir) do
    left = leftovers(dir)
    File.rm_rf!(dir)
    if left != [], do: raise("left in #{dir}: #{inspect(left)}")
  end
end
