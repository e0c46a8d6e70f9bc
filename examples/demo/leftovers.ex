defmodule Demo.Leftovers do
  @moduledoc "What a namespace has left in its directory."

  @doc """
  The files of `namespace` that are still in `dir` after two seconds; the empty list as soon as there are none.

  Large mappings are handed back in the background, hence the patience.
  """
  @spec of(Path.t(), String.t()) :: [String.t()]
  def of(dir, namespace), do: look(dir, namespace, System.monotonic_time(:millisecond) + 2_000)

  defp look(dir, namespace, deadline) do
    found =
      dir
      |> File.ls!()
      |> Enum.filter(&String.starts_with?(&1, [namespace <> "_", namespace <> "."]))
      |> Enum.sort()

    if found == [] or System.monotonic_time(:millisecond) > deadline do
      found
    else
      Process.sleep(20)
      look(dir, namespace, deadline)
    end
  end
end
