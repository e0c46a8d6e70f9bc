defmodule Demo.Source do
  @moduledoc """
  What is in the user's file: a picture (PNG, or a `.npy` that is laid out like one), an array (`.npy`), or bytes.
  """

  alias Demo.{Histogram, NPY, PNG}

  @enforce_keys [:kind, :what, :data, :dtype, :shape]
  defstruct [:picture | @enforce_keys]

  @type t :: %__MODULE__{
          kind: :picture | :values,
          what: String.t(),
          data: binary(),
          dtype: String.t(),
          shape: [pos_integer()],
          picture: PNG.t() | nil
        }

  # The largest region there is.
  @max_bytes 1_073_741_824
  # The descriptor of a region has room for so many dimensions.
  @max_dims 6

  @doc "Reads the file, or says in a sentence why it cannot be used."
  @spec read(Path.t()) :: {:ok, t()} | {:error, String.t()}
  def read(path) do
    with {:ok, bytes} <- file(path),
         {:ok, source} <- recognise(bytes) do
      if byte_size(source.data) in 1..@max_bytes,
        do: {:ok, source},
        else:
          {:error,
           "#{path} holds #{byte_size(source.data)} bytes of data; 1 to #{@max_bytes} can be shared"}
    else
      {:error, reason} -> {:error, "#{path}: #{reason}"}
    end
  end

  defp file(path) do
    case File.read(path) do
      {:ok, bytes} -> {:ok, bytes}
      {:error, reason} -> {:error, "#{:file.format_error(reason)}"}
    end
  end

  defp recognise(bytes) do
    cond do
      PNG.png?(bytes) ->
        with {:ok, picture} <- PNG.decode(bytes), do: {:ok, picture(picture, "PNG picture")}

      NPY.npy?(bytes) ->
        with {:ok, array} <- NPY.decode(bytes), do: {:ok, array(array)}

      true ->
        {:ok, values(bytes, "|u1", [byte_size(bytes)], "file of bytes")}
    end
  end

  defp array(%NPY{dtype: dtype, shape: [height, width | rest], data: data})
       when dtype in ["|u1", "<u1"] and rest in [[], [3], [4]] and height > 0 and width > 0 do
    channels = Enum.at(rest, 0, 1)

    picture(
      %PNG{width: width, height: height, channels: channels, pixels: data},
      "numpy array laid out like a picture"
    )
  end

  defp array(%NPY{dtype: dtype, shape: shape, data: data}) do
    if Histogram.countable?(dtype) and length(shape) in 1..@max_dims,
      do: values(data, dtype, shape, "numpy array"),
      else:
        values(
          data,
          "|u1",
          [byte_size(data)],
          "numpy array of dtype #{dtype} and shape #{inspect(shape)}, as bytes"
        )
  end

  defp picture(%PNG{channels: 1} = p, what), do: picture(p, what, [p.height, p.width])
  defp picture(%PNG{} = p, what), do: picture(p, what, [p.height, p.width, p.channels])

  defp picture(picture, what, shape),
    do: %__MODULE__{
      kind: :picture,
      what: what,
      data: picture.pixels,
      dtype: "|u1",
      shape: shape,
      picture: picture
    }

  defp values(data, dtype, shape, what),
    do: %__MODULE__{kind: :values, what: what, data: data, dtype: dtype, shape: shape}
end
