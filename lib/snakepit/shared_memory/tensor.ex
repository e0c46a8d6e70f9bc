defmodule Snakepit.SharedMemory.Tensor do
  @moduledoc false
  # Tensors of Nx, by its public functions alone, when it is loaded: this library does not depend on it.

  alias Snakepit.SharedMemory.{Dtype, Error}

  @nx Nx

  # By what numpy calls them without the order of bytes; Nx has no type for booleans.
  @names %{
    "b1" => {:u, 8},
    "u1" => {:u, 8},
    "u2" => {:u, 16},
    "u4" => {:u, 32},
    "u8" => {:u, 64},
    "i1" => {:s, 8},
    "i2" => {:s, 16},
    "i4" => {:s, 32},
    "i8" => {:s, 64},
    "f2" => {:f, 16},
    "f4" => {:f, 32},
    "f8" => {:f, 64},
    "c8" => {:c, 64},
    "c16" => {:c, 128}
  }

  @doc "Whether a term is a tensor."
  @spec tensor?(term()) :: boolean()
  def tensor?(%{__struct__: Nx.Tensor}), do: true
  def tensor?(_term), do: false

  @doc "The bytes of a tensor, its element type and its shape. On Nx's own backend nothing is copied."
  @spec bytes(struct()) ::
          {:ok, {binary(), String.t(), [non_neg_integer()]}} | {:error, Error.t()}
  def bytes(tensor) do
    with :ok <- loaded(:share) do
      guarded(:share, "pass the tensor's bytes with :dtype and :shape", fn ->
        with {:ok, dtype} <- dtype(apply(@nx, :type, [tensor])) do
          shape = Tuple.to_list(apply(@nx, :shape, [tensor]))
          {:ok, {apply(@nx, :to_binary, [tensor]), dtype, shape}}
        end
      end)
    end
  end

  # Backends are others' code, and raise for what they cannot do (a tensor that was given to a device and is gone,
  # say).
  defp guarded(operation, remedy, work) do
    work.()
  rescue
    exception ->
      {:error,
       Error.new(:unsupported, "Nx refused it: #{Exception.message(exception)}",
         operation: operation,
         remedy: remedy
       )}
  end

  defp dtype(type) do
    with :error <- Dtype.to_string(type) do
      {:error,
       Error.new(:unsupported, "numpy has no element type for tensors of #{inspect(type)}",
         operation: :share,
         remedy: "share Nx.as_type(tensor, :f32), or the bits by Nx.bitcast(tensor, :u16)"
       )}
    end
  end

  @doc """
  The tensor that lies in a binary, by what the handle says of it. Nothing is copied, unless its elements lie in
  Fortran's order, which Nx does not have.
  """
  @spec from(binary(), map()) :: {:ok, struct()} | {:error, Error.t()}
  def from(binary, %{"format" => format, "dtype" => dtype, "shape" => shape} = handle) do
    with :ok <- loaded(:fetch),
         {:ok, type} <- type(format, dtype, handle["element"]),
         :ok <- filled(binary) do
      guarded(:fetch, "fetch it as a binary", fn ->
        tensor = apply(@nx, :from_binary, [binary, type, []])
        {:ok, shaped(tensor, shape, handle["order"])}
      end)
    end
  end

  # Each axis of a tensor has an index at least.
  defp filled(<<>>),
    do: {:error, no_tensor("Nx has no tensors without elements", "fetch it as a binary")}

  defp filled(_binary), do: :ok

  # The first index runs fastest: in the order of Nx, that is the tensor with its axes turned round.
  defp shaped(tensor, shape, "F") do
    turned = apply(@nx, :reshape, [tensor, shape |> Enum.reverse() |> List.to_tuple()])
    apply(@nx, :transpose, [turned])
  end

  defp shaped(tensor, shape, _order), do: apply(@nx, :reshape, [tensor, List.to_tuple(shape)])

  defp type("arrow_ipc", _dtype, _element) do
    {:error, no_tensor("a table (format arrow_ipc) is no tensor", "fetch it as a binary")}
  end

  # numpy has no type of its own for it.
  defp type(_format, "|V2", "bfloat16"), do: {:ok, {:bf, 16}}

  defp type(_format, dtype, element) when element != nil do
    {:error, no_tensor("Nx has no type for #{element} (#{dtype})", "fetch it as a binary")}
  end

  # Of one byte there is no order; Nx's is this machine's.
  defp type(_format, <<order, name::binary>> = dtype, nil) do
    case @names do
      %{^name => type} when order in ~c"<|=" or name in ["u1", "i1", "b1"] -> {:ok, type}
      _ -> {:error, no_tensor("Nx has no type for elements of #{dtype}", remedy(order, name))}
    end
  end

  defp remedy(?>, _name), do: "have it shared in little-endian, or fetch it as a binary"

  defp remedy(_order, <<kind, _::binary>>) when kind in ~c"mM",
    do: "fetch it as a binary: signed 64-bit numbers that count the unit of the dtype"

  defp remedy(_order, _name), do: "fetch it as a binary"

  defp no_tensor(message, remedy) do
    Error.new(:unsupported, message, operation: :fetch, remedy: remedy)
  end

  defp loaded(operation) do
    if Code.ensure_loaded?(@nx) do
      :ok
    else
      {:error,
       Error.new(:unsupported, "Nx is not loaded",
         operation: operation,
         remedy: "add :nx to the dependencies, or pass binaries with :dtype and :shape"
       )}
    end
  end
end
