defmodule Snakepit.SharedMemory.Bridge.Wire do
  @moduledoc false
  # The forms in which values travel in JSON in place of themselves, besides a handle as it is. The
  # Python side is `snakepit_shm/_snakepit_wire.py`; docs/guides/snakepit.md describes them.
  #
  #   a handle                                  bytes, an array or a table
  #   {"__snakepit_shm_text__": handle}         text if it is UTF-8, else bytes
  #   {"__snakepit_shm_chunk__": handle}        a value that whoever takes it removes
  #   {"__snakepit_shm_inline__": 1, ...}       the bytes themselves, in base64
  #   {"__snakepit_zero_copy__": true, ...}     Snakepit's reference, which may carry a handle

  alias Snakepit.SharedMemory.Bridge.ZeroCopy

  @handle "__snakepit_shm__"
  @text "__snakepit_shm_text__"
  @chunk "__snakepit_shm_chunk__"
  @inline "__snakepit_shm_inline__"
  @reference "__snakepit_zero_copy__"

  # What the Python side says when it could not resolve the arguments, and so did not call the tool.
  @unresolved "[snakepit-shm: arguments not resolved]"

  @type inline :: %{data: binary(), reason: String.t() | nil}

  @spec text(map()) :: map()
  def text(handle), do: %{@text => handle}

  @spec inline(iodata(), keyword()) :: map()
  def inline(data, options) do
    %{
      @inline => 1,
      "base64" => data |> IO.iodata_to_binary() |> Base.encode64(),
      "dtype" => options[:dtype] && dtype(options[:dtype]),
      "shape" => options[:shape],
      "format" => to_string(options[:format] || if(options[:dtype], do: :numpy, else: :raw)),
      "reason" => nil
    }
  end

  # What is no element type is refused where it is shared; here it goes as it came.
  defp dtype(dtype) do
    case Snakepit.SharedMemory.Dtype.to_string(dtype) do
      {:ok, text} -> text
      :error -> inspect(dtype)
    end
  end

  @doc "What a map stands for; every byte of it comes from outside."
  @spec read(map()) ::
          {:handle, map(), :value | :chunk} | {:inline, inline()} | {:error, String.t()} | :plain
  def read(map) do
    with :inline <- form(map), do: read_inline(map)
  end

  @doc "The same, without a look into what is inline."
  @spec form(map()) :: {:handle, map(), :value | :chunk} | :inline | :plain
  def form(%{@handle => _} = handle), do: {:handle, handle, :value}

  def form(%{@text => %{@handle => _} = handle} = map) when map_size(map) == 1,
    do: {:handle, handle, :value}

  def form(%{@chunk => %{@handle => _} = handle} = map) when map_size(map) == 1,
    do: {:handle, handle, :chunk}

  def form(%{@inline => _}), do: :inline

  # Snakepit's own reference, which carries a handle; what says two things of one value names nothing.
  def form(%{@reference => true, "metadata" => %{}} = map) do
    case ZeroCopy.read(map) do
      {:ok, handle} -> {:handle, handle, :value}
      {:error, _not_ours} -> :plain
    end
  end

  def form(_map), do: :plain

  defp read_inline(%{@inline => 1, "base64" => text} = map) when is_binary(text) do
    case Base.decode64(text) do
      {:ok, data} -> {:inline, %{data: data, reason: reason(map["reason"])}}
      :error -> {:error, "an inline value that is no base64"}
    end
  end

  defp read_inline(_map), do: {:error, "an inline value of another form"}

  defp reason(reason) when is_binary(reason), do: reason
  defp reason(_none), do: nil

  @spec unresolved?(term()) :: boolean()
  def unresolved?({:error, error}), do: error |> said() |> String.contains?(@unresolved)
  def unresolved?(_answer), do: false

  # Wherever in an error the transport has put it. It stands at the end of a traceback.
  defp said(text) when is_binary(text), do: text
  defp said(error), do: inspect(error, printable_limit: 65_536, limit: 500)
end
