defmodule Snakepit.SharedMemory.Bridge.ZeroCopy do
  @moduledoc false
  # Handles as Snakepit's own references, and back. Snakepit is no dependency: its struct is made by
  # its name, where it is loaded.
  #
  # Snakepit's form says what a value is; which region it is goes along in its metadata. Its `ref` is
  # a term of the VM that made it, which means nothing elsewhere and is never decoded here.

  alias Snakepit.SharedMemory.{Dtype, Error}

  @struct Snakepit.ZeroCopyRef
  @key "snakepit_shm"
  @map "__snakepit_zero_copy__"

  @spec make(map()) :: {:ok, struct()} | {:error, Error.t()}
  def make(%{"__snakepit_shm__" => _, "bytes" => bytes} = handle) do
    if Code.ensure_loaded?(@struct) do
      {:ok,
       struct!(@struct,
         kind: if(handle["format"] == "arrow_ipc", do: :arrow, else: :dlpack),
         device: :cpu,
         dtype: handle["dtype"],
         shape: handle["shape"],
         owner: :elixir,
         ref: make_ref(),
         copy: false,
         bytes: bytes,
         metadata: %{@key => handle}
       )}
    else
      {:error, missing("#{inspect(@struct)} is not loaded", :to_zero_copy_ref)}
    end
  end

  def make(other), do: {:error, not_a_handle(other, :to_zero_copy_ref)}

  @spec read(term()) :: {:ok, map()} | {:error, Error.t()}
  def read(%{__struct__: @struct, metadata: metadata} = ref), do: read(metadata, ref)
  def read(%{@map => true, "metadata" => metadata} = map), do: read(metadata, map)
  def read(other), do: {:error, not_ours(other)}

  defp read(%{@key => %{"__snakepit_shm__" => _} = handle}, ref) do
    # Two stories about one value: which of them is true nobody knows.
    if agree?(handle, ref), do: {:ok, handle}, else: {:error, not_ours(ref)}
  end

  # Struct keys are atoms where the metadata came from Elixir code.
  defp read(%{snakepit_shm: handle}, ref), do: read(%{@key => handle}, ref)
  defp read(_metadata, ref), do: {:error, not_ours(ref)}

  defp agree?(handle, ref) do
    agrees?(handle["bytes"], get(ref, :bytes)) and
      agrees?(handle["shape"], shape(get(ref, :shape))) and
      agrees?(handle["dtype"], dtype(get(ref, :dtype)))
  end

  defp agrees?(_ours, nil), do: true
  defp agrees?(ours, theirs), do: ours == theirs

  defp shape(shape) when is_tuple(shape), do: Tuple.to_list(shape)
  defp shape(shape), do: shape

  # Others may write the type in another way; only one that we know is compared.
  defp dtype(dtype) when is_binary(dtype) do
    if match?({:ok, _}, Dtype.item_size(dtype)), do: dtype
  end

  defp dtype(dtype) do
    case Dtype.to_string(dtype) do
      {:ok, text} -> text
      :error -> nil
    end
  end

  defp get(%{__struct__: _} = ref, key), do: Map.get(ref, key)
  defp get(map, key), do: Map.get(map, Atom.to_string(key))

  @doc false
  @spec missing(String.t(), atom()) :: Error.t()
  def missing(what, operation) do
    Error.new(:unsupported, what,
      operation: operation,
      remedy: "add :snakepit to the application's dependencies, or name a transport with :via"
    )
  end

  defp not_a_handle(other, operation) do
    shown = inspect(other, limit: 5, printable_limit: 60)

    Error.new(:invalid_handle, "not a handle: #{shown}",
      operation: operation,
      remedy: "pass the map that share/2 returned"
    )
  end

  defp not_ours(other) do
    shown = inspect(other, limit: 5, printable_limit: 60)

    Error.new(:invalid_handle, "no reference to a region of ours: #{shown}",
      operation: :from_zero_copy_ref,
      remedy: "pass what to_zero_copy_ref/1 or the Python package's to_zero_copy_ref made"
    )
  end
end
